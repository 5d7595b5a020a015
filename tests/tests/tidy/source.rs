//! Reading the source tree: files, their code without comments and literals, tokens and flattened `use` paths.
//! Invariant: blanking keeps every line break, so that a line number in the code is one in the file.

use std::{fmt, fs, path::Path};

/// One `.rs` file.
pub(crate) struct Source {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// The file as it is.
    pub(crate) text: String,
    /// The text with comments and the content of literals blanked.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { path: path.into(), code: blank(&text), text }
    }

    pub(crate) fn is_under(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// Whether the whole file is a module of tests.
    pub(crate) fn is_test_module(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let in_folder = self.path.split('/').skip(1).any(|folder| folder == "tests");
        in_folder || name == "tests.rs" || name.ends_with("_test.rs") || name.ends_with("_tests.rs")
    }

    /// The code that ships: without `#[cfg(test)]` items, empty for a module of tests.
    pub(crate) fn shipped(&self) -> String {
        if self.is_test_module() { String::new() } else { without_tests(&self.code) }
    }

    pub(crate) fn violation(&self, line: usize, message: impl Into<String>) -> Violation {
        Violation { path: self.path.clone(), line, message: message.into() }
    }
}

/// What a check found, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}:{}: {}", self.path, self.line, self.message)
    }
}

/// Every `.rs` file below `root`, in order of path; build output and hidden folders left out.
pub(crate) fn read_all(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    walk(root, "", &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<Source>) {
    let is_output = folder.join("CACHEDIR.TAG").exists();
    let entries = if is_output { None } else { fs::read_dir(folder).ok() };
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && !name.starts_with('.') && name != "target" {
            walk(&entry.path(), &format!("{path}/"), found);
        } else if name.ends_with(".rs") {
            // A file that vanishes while others work in the tree is no violation.
            found.extend(fs::read_to_string(entry.path()).ok().map(|text| Source::new(path, text)));
        }
    }
}

/// A word or a mark of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    /// From 1.
    pub(crate) line: usize,
    /// Byte position in the code.
    pub(crate) at: usize,
}

/// Words, `::` and single marks, white space left out.
pub(crate) fn tokens(code: &str) -> Vec<Token<'_>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut line, mut at) = (Vec::new(), 1, 0);
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let length = match first {
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        if !first.is_whitespace() {
            found.push(Token { text: &rest[..length], line, at });
        }
        line += usize::from(first == '\n');
        at += length;
    }
    found
}

/// Every path that `use` items bring in, flattened: `use a::{b, c::d}` is `a::b` and `a::c::d`; with its line.
pub(crate) fn used_paths(tokens: &[Token<'_>]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut rest = tokens;
    while let Some(at) = rest.iter().position(|token| token.text == "use") {
        let end = rest[at..].iter().position(|token| token.text == ";").map_or(rest.len(), |end| at + end);
        flatten(&rest[at + 1..end], &mut Vec::new(), &mut found);
        rest = &rest[end..];
    }
    found
}

fn flatten(tree: &[Token<'_>], prefix: &mut Vec<String>, found: &mut Vec<(String, usize)>) {
    let depth_at_start = prefix.len();
    let (mut at, mut leaf) = (0, None);
    while let Some(token) = tree.get(at) {
        match token.text {
            "{" => {
                let inner = matching(&tree[at..]);
                flatten(&tree[at + 1..at + inner], prefix, found);
                (at, leaf) = (at + inner, None);
            }
            "," => {
                found.extend(leaf.take().map(|line| (prefix.join("::"), line)));
                prefix.truncate(depth_at_start);
            }
            "as" => at += 1,
            "::" => leaf = None,
            word => {
                prefix.push(word.to_owned());
                leaf = Some(token.line);
            }
        }
        at += 1;
    }
    found.extend(leaf.map(|line| (prefix.join("::"), line)));
    prefix.truncate(depth_at_start);
}

/// Place of the brace that closes the one at the start; the end where none does.
pub(crate) fn matching(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => depth += 1,
            "}" if depth == 1 => return at,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}

/// From a token to the end of the item that begins there: its `;`, or the brace that closes its body.
pub(crate) fn item_end(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_i32;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            ";" if depth == 0 => return at,
            "{" if depth == 0 => return at + matching(&tokens[at..]),
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}

fn without_tests(code: &str) -> String {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let tokens = tokens(code);
    let mut shipped = code.to_owned();
    let mut at = 0;
    while at + MARK.len() < tokens.len() {
        if tokens[at..].iter().zip(MARK).any(|(token, mark)| token.text != mark) {
            at += 1;
            continue;
        }
        let end = at + item_end(&tokens[at..]);
        let last = tokens[end];
        let range = tokens[at].at..last.at + last.text.len();
        shipped.replace_range(range.clone(), &blanks(&code[range]));
        at = end + 1;
    }
    shipped
}

/// As many bytes of white space with the same line breaks, so that positions and line numbers stay true.
fn blanks(piece: &str) -> String {
    piece.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}

/// Blanks comments and the content of string and character literals.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_word = false;
    while let Some(first) = rest.chars().next() {
        let (kept, length) = literal(rest, after_word).unwrap_or((true, first.len_utf8()));
        let (piece, left) = rest.split_at(length);
        if kept {
            code.push_str(piece);
        } else {
            code.push_str(&blanks(piece));
        }
        after_word = kept && (first.is_alphanumeric() || first == '_');
        rest = left;
    }
    code
}

/// Length of the comment, literal or lifetime at the start, and whether it is kept.
fn literal(rest: &str, after_word: bool) -> Option<(bool, usize)> {
    if rest.starts_with("//") {
        return Some((false, rest.find('\n').unwrap_or(rest.len())));
    }
    if rest.starts_with("/*") {
        return Some((false, block_comment(rest)));
    }
    if rest.starts_with('"') {
        return Some((false, quoted(rest, '"')));
    }
    if let Some(after) = rest.strip_prefix('\'') {
        let mut next = after.chars();
        let is_character = next.next() == Some('\\') || next.next() == Some('\'');
        return Some(if is_character { (false, quoted(rest, '\'')) } else { (true, 1) });
    }
    let raw = ["r", "br", "cr"].into_iter().filter(|_| !after_word).find_map(|start| {
        let hashes = rest.strip_prefix(start)?;
        let count = hashes.bytes().take_while(|&byte| byte == b'#').count();
        hashes[count..].starts_with('"').then_some((start.len() + count + 1, count))
    })?;
    let (start, count) = raw;
    let close = format!("\"{}", "#".repeat(count));
    Some((false, rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len())))
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let (step, change) = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = true;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(code: &str) -> Vec<String> {
        tokens(code).iter().map(|token| token.text.to_owned()).collect()
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        for (text, want) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            ("f(\"x // y\\\" z\") g", "f ( ) g"),
            ("f(r#\"a \" b\"#, br\"c\") g", "f ( , ) g"),
            ("'a' 'x: loop '\\'' &'b str", "' x : loop & ' b str"),
            ("bar\"text\" b'\\n' x", "bar b x"),
        ] {
            let source = Source::new("a.rs", text);
            assert_eq!(words(&source.code).join(" "), want, "{text}");
            assert_eq!(source.code.len(), text.len(), "{text}");
        }
    }

    #[test]
    fn use_trees_are_flattened() {
        let code = "pub use a::b;\nuse c::{d::{e, f as g}, h::*,\n i};\nuse self::j;";
        let want = [("a::b", 1), ("c::d::e", 2), ("c::d::f", 2), ("c::h::*", 2), ("c::i", 3), ("self::j", 4)];
        let want: Vec<_> = want.map(|(path, line)| (path.to_owned(), line)).into();
        assert_eq!(used_paths(&tokens(code)), want);
    }

    #[test]
    fn test_items_do_not_ship() {
        let code = "a;\n#[cfg(test)]\n#[allow(x)]\nmod t { fn ü() { b } }\n#[cfg(test)]\nmod u;\nc;\n#[cfg(unix)] d;";
        let shipped = Source::new("src/a.rs", code).shipped();
        assert_eq!(words(&shipped).join(" "), "a ; c ; # [ cfg ( unix ) ] d ;");
        assert_eq!(tokens(&shipped).iter().find(|token| token.text == "c").map(|token| token.line), Some(7));
        for (path, ships) in [
            ("src/a.rs", true),
            ("src/tests.rs", false),
            ("src/a/tests/b.rs", false),
            ("src/a_test.rs", false),
            ("tests/src/a.rs", true),
        ] {
            assert_eq!(!Source::new(path, "x").shipped().is_empty(), ships, "{path}");
        }
    }
}
