//! Plots of a figure over the partitions, a line a size, as SVG. Both axes are logarithmic: partitions by powers of two,
//! figures by powers of ten. Pure: values in, text out.

use plotters::prelude::*;

use super::{figures::Figure, outcome::Row};
use crate::load::report::name;

const WIDTH: u32 = 860;
const HEIGHT: u32 = 480;
const FONT: &str = "sans-serif";
/// One a size; more sizes begin anew.
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 94, 0),
    RGBColor(0, 135, 95),
    RGBColor(170, 60, 150),
    RGBColor(120, 90, 60),
    RGBColor(90, 90, 90),
];

/// A plot and the file that it goes to.
pub(super) struct Plot {
    /// Name of the file.
    pub(super) file: String,
    /// Its contents.
    pub(super) svg: String,
}

/// Throughput and p99 over the partitions, for each durability that has figures.
///
/// # Errors
/// When the drawing fails, which is a fault of the tool.
pub(super) fn all(rows: &[Row]) -> anyhow::Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for alike in rows.chunk_by(|one, other| one.cell.durability == other.cell.durability) {
        let Some(first) = alike.first() else { continue };
        let durability = name(first.cell.durability);
        for (figure, what, title) in [
            (Figure::MegabytesPerSecond, "throughput", "MB/s acknowledged"),
            (Figure::AckP99Ms, "p99", "p99 of the acknowledgement, ms"),
        ] {
            let lines = lines(alike, figure);
            if !lines.is_empty() {
                let svg = draw(&format!("{title} ({durability})"), title, &lines)?;
                plots.push(Plot { file: format!("{what}-{durability}.svg"), svg });
            }
        }
    }
    Ok(plots)
}

/// A named series of points: logarithms of partitions and of the figure.
type Line = (String, Vec<(f64, f64)>);

/// A line a size; what was not measured, or is 0, has no point.
fn lines(rows: &[Row], figure: Figure) -> Vec<Line> {
    let by_size = rows.chunk_by(|one, other| one.cell.size == other.cell.size);
    let lines = by_size.filter_map(|alike| {
        let value = |row: &Row| row.figures.get(figure).filter(|value| *value > 0.0);
        let point = |row: &Row| Some((f64::from(row.cell.partitions).log2(), value(row)?.log10()));
        let points: Vec<_> = alike.iter().filter_map(point).collect();
        alike.first().filter(|_| !points.is_empty()).map(|row| (row.cell.size.to_string(), points))
    });
    lines.collect()
}

fn draw(title: &str, of: &str, lines: &[Line]) -> anyhow::Result<String> {
    let mut svg = String::new();
    drawn_into(&mut svg, title, of, lines).map_err(|error| anyhow::anyhow!("draw {title}: {error}"))?;
    Ok(svg)
}

fn drawn_into(svg: &mut String, title: &str, of: &str, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let (across, along) = (range(lines, |point| point.0), range(lines, |point| point.1));
    // The legend's place.
    let across = across.start..across.end + (across.end - across.start) * 0.16;
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(across, along)?;
    chart
        .configure_mesh()
        .x_desc("partitions")
        .y_desc(of)
        .x_label_formatter(&|log| power(*log))
        .y_label_formatter(&|log| label(10f64.powf(*log)))
        .label_style((FONT, 14))
        .light_line_style(WHITE)
        .draw()?;
    for (index, (size, points)) in lines.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(size)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 4, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font((FONT, 14))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .draw()?;
    area.present()?;
    Ok(())
}

/// From the least to the greatest, with room on both sides.
fn range(lines: &[Line], of: fn(&(f64, f64)) -> f64) -> std::ops::Range<f64> {
    let values = || lines.iter().flat_map(|(_, points)| points).map(of);
    let (least, greatest) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let room = ((greatest - least) * 0.06).max(0.15);
    least - room..greatest + room
}

/// Partitions are whole; a tick between two powers stays without a name.
fn power(log: f64) -> String {
    if log < 0.0 || log.fract().abs() > 1e-6 { String::new() } else { format!("{:.0}", log.exp2()) }
}

/// Two digits are enough beside a tick.
fn label(value: f64) -> String {
    match value {
        value if value >= 9.5 => format!("{:.0}", value),
        value if value >= 0.95 => format!("{:.1}", value),
        value => format!("{:.2}", value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::{options::Durability, report::tests::report},
        matrix::{figures::Figures, grid::Cell, outcome::Round},
    };

    fn row(durability: Durability, size: &str, partitions: u32, rate: f64) -> Row {
        let cell = Cell { durability, size: size.parse().expect("a size"), partitions };
        let mut report = report();
        report.publish.megabytes_per_second = rate;
        let figures = Figures::of(cell, &report, None, None);
        Row::new(cell, vec![Round::Ran { report: Box::new(report), usage: None, figures }])
    }

    #[test]
    fn there_is_a_plot_a_figure_and_durability_and_a_line_a_size() {
        let mut rows = Vec::new();
        for durability in [Durability::Fsync, Durability::Replicated] {
            for size in ["100", "1KiB"] {
                rows.extend([1, 16, 4_096].map(|partitions| row(durability, size, partitions, 10.0)));
            }
        }
        let plots = all(&rows).expect("drawn");
        let files: Vec<_> = plots.iter().map(|plot| plot.file.as_str()).collect();
        let want = ["throughput-fsync.svg", "p99-fsync.svg", "throughput-replicated.svg", "p99-replicated.svg"];
        assert_eq!(files, want);
        for Plot { svg, file } in &plots {
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{file}");
            assert_eq!(svg.matches("<circle").count(), 6, "{file}: a point a cell");
            assert!(svg.contains("100 B") && svg.contains("1 KiB") && svg.contains("partitions"), "{file}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{file}");
        }
    }

    #[test]
    fn little_to_draw_is_no_fault() {
        assert!(all(&[]).expect("drawn").is_empty());
        let one = all(&[row(Durability::Fsync, "100", 1, 5.0)]).expect("drawn");
        assert_eq!(one.len(), 2);
        let nothing = all(&[row(Durability::Fsync, "100", 1, 0.0)]).expect("drawn");
        assert_eq!(nothing.len(), 1, "a rate of 0 has no place on a logarithmic axis");
    }

    #[test]
    fn ticks_are_short() {
        for (value, want) in [(4_096.0, "4096"), (9.6, "10"), (3.16, "3.2"), (0.316, "0.32"), (1.0, "1.0")] {
            assert_eq!(label(value), want);
        }
        for (log, want) in [(0.0, "1"), (12.0, "4096"), (0.5, ""), (-1.0, "")] {
            assert_eq!(power(log), want);
        }
    }
}
