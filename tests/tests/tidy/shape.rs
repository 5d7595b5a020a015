//! The shape of a file: its length, its opening words, the length of its functions, nothing left for later.

use crate::source::{Source, Token, Violation, item_end, tokens};

const FILE_LINES_LIMIT: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
/// Assembled, so that this file does not accuse itself.
const LEFTOVERS: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// A file of 500 lines or more is two files.
pub(crate) fn file_length(source: &Source, exceptions: &[(&str, usize)]) -> Vec<Violation> {
    let lines = source.text.lines().count();
    let allowed = exceptions.iter().find(|(path, _)| *path == source.path).map_or(FILE_LINES_LIMIT - 1, |e| e.1);
    let message = || format!("{lines} lines, {allowed} are allowed: split it by nouns");
    (lines > allowed).then(|| source.violation(lines, message())).into_iter().collect()
}

/// A function that needs scrolling is several functions.
pub(crate) fn function_lengths(source: &Source, exceptions: &[(&str, &str, usize)]) -> Vec<Violation> {
    let mut found = Vec::new();
    for Function { name, line, lines } in functions(&source.code) {
        let exception = exceptions.iter().find(|(path, function, _)| *path == source.path && *function == name);
        let allowed = exception.map_or(FUNCTION_LINES_MAX, |e| e.2);
        if lines > allowed {
            found.push(source.violation(line, format!("fn {name} has {lines} lines, {allowed} are allowed")));
        }
    }
    found
}

/// Exceptions that nothing needs any more, or that allow more than is needed.
pub(crate) fn stale_exceptions(
    sources: &[Source],
    files: &[(&str, usize)],
    named: &[(&str, &str, usize)],
) -> Vec<Violation> {
    let lines_of = |path: &str| sources.iter().find(|source| source.path == path).map(|s| s.text.lines().count());
    let lines_of_function = |path: &str, name: &str| {
        let source = sources.iter().find(|source| source.path == path)?;
        functions(&source.code).into_iter().filter(|function| function.name == name).map(|f| f.lines).max()
    };
    let files = files.iter().map(|&(path, allowed)| (path, allowed, FILE_LINES_LIMIT - 1, lines_of(path)));
    let named = named.iter().map(|&(path, name, allowed)| {
        let lines = lines_of_function(path, name);
        (path, allowed, FUNCTION_LINES_MAX, lines)
    });
    let stale = files.chain(named).filter(|&(_, allowed, limit, lines)| lines != Some(allowed) || allowed <= limit);
    let message =
        |allowed, lines| format!("the exception allows {allowed} lines, now it is {lines:?}: shrink the list");
    stale
        .map(|(path, allowed, _, lines)| Violation { path: path.to_owned(), line: 1, message: message(allowed, lines) })
        .collect()
}

/// Each file begins with what it owns and what it must never do.
pub(crate) fn opening(source: &Source) -> Vec<Violation> {
    let opens = source.text.strip_prefix("//!").is_some_and(|rest| rest.starts_with([' ', '\n']));
    let empty = source.text.lines().next().is_some_and(|line| line.trim() == "//!" || line.contains("placeholder"));
    let message = "must begin with `//!`: what the file owns, its invariants, what it never does";
    (!opens || empty).then(|| source.violation(1, message)).into_iter().collect()
}

/// Words that put work off, in code and comments.
pub(crate) fn leftovers(source: &Source) -> Vec<Violation> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, line) in source.text.lines().enumerate() {
        let word = line.split(|c| !is_word(c)).find(|word| LEFTOVERS.contains(word));
        found.extend(word.map(|word| source.violation(at + 1, format!("{word}: do it now, or open an issue"))));
    }
    for pair in tokens(&source.code).windows(2) {
        if matches!(pair[0].text, "todo" | "unimplemented") && pair[1].text == "!" {
            found.push(source.violation(pair[0].line, format!("{}!: do it now", pair[0].text)));
        }
    }
    found
}

struct Function<'a> {
    name: &'a str,
    line: usize,
    lines: usize,
}

/// Functions with a body, from the line of `fn` to that of the closing brace.
fn functions(code: &str) -> Vec<Function<'_>> {
    let tokens = tokens(code);
    let is_name = |token: &Token<'_>| token.text.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let starts = tokens.windows(2).enumerate().filter(|(_, pair)| pair[0].text == "fn" && is_name(&pair[1]));
    let mut found = Vec::new();
    for (at, pair) in starts {
        let last = tokens[at + item_end(&tokens[at..])];
        if last.text == "}" {
            found.push(Function { name: pair[1].text, line: pair[0].line, lines: last.line - pair[0].line + 1 });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> Source {
        Source::new("a.rs", "//! x\n".repeat(count))
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(file_length(&lines(499), &[]).len(), 0);
        assert_eq!(file_length(&lines(500), &[]).len(), 1);
        assert_eq!(file_length(&lines(500), &[("a.rs", 500)]).len(), 0);
        assert_eq!(file_length(&lines(501), &[("a.rs", 500)]).len(), 1);
        assert_eq!(file_length(&lines(500), &[("b.rs", 500)]).len(), 1);
    }

    fn function_of(lines: usize) -> Source {
        let body = "    x(\"}\", '{'); // }\n".repeat(lines - 2);
        Source::new(
            "a.rs",
            format!("trait T {{ fn t(a: [u8; 2]); }}\nimpl T {{\npub(crate) async fn f<'a>(\n{body}) {{ }}\n}}\n"),
        )
    }

    #[test]
    fn long_functions_are_found() {
        let short = function_of(70);
        assert!(function_lengths(&short, &[]).is_empty());
        let long = function_of(71);
        assert_eq!(function_lengths(&long, &[]), [long.violation(3, "fn f has 71 lines, 70 are allowed")]);
        assert!(function_lengths(&long, &[("a.rs", "f", 71)]).is_empty());
        let braces = format!("fn g() -> impl Fn() {{\n{}}}\nfn h() {{}}\n", "  if a { b }\n".repeat(80));
        let names: Vec<_> = functions(&braces).iter().map(|f| (f.name.to_owned(), f.lines)).collect();
        assert_eq!(names, [("g".to_owned(), 82), ("h".to_owned(), 1)]);
    }

    #[test]
    fn exceptions_must_be_exact() {
        let sources = [lines(600), Source::new("b.rs", function_of(80).text)];
        let stale =
            |files: &[(&str, usize)], named: &[(&str, &str, usize)]| stale_exceptions(&sources, files, named).len();
        assert_eq!(stale(&[("a.rs", 600)], &[("b.rs", "f", 80)]), 0);
        assert_eq!(stale(&[("a.rs", 601), ("gone.rs", 600)], &[("b.rs", "f", 90), ("b.rs", "gone", 80)]), 4);
    }

    #[test]
    fn files_without_an_opening_are_found() {
        let placeholder = "//! placeholder\n";
        for (text, good) in [
            ("//! Owns x.\n", true),
            ("//!\n", false),
            ("// x", false),
            ("use x;", false),
            ("", false),
            (placeholder, false),
        ] {
            assert_eq!(opening(&Source::new("a.rs", text)).is_empty(), good, "{text:?}");
        }
    }

    #[test]
    fn leftovers_are_found() {
        for (text, count) in [
            (format!("// {}: later", LEFTOVERS[0]), 1),
            (format!("let a = \"{}\";", LEFTOVERS[1]), 1),
            (format!("fn f() {{ {}!() }}", "todo"), 1),
            ("// a todo list".to_owned(), 0),
            (format!("let {}S = 1;", LEFTOVERS[0]), 0),
        ] {
            assert_eq!(leftovers(&Source::new("a.rs", text.as_str())).len(), count, "{text}");
        }
    }
}
