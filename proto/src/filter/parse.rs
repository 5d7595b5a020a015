//! From text to expression: a hand-written descent, one character of lookahead, bounded in length and depth. Every
//! error says where, in characters, and what would have been right.

use super::{Node, Test};
use crate::limits;

/// Parentheses and `not`s within one another.
pub(super) const DEPTH_MAX: usize = 32;

/// Why a text is no filter. Displayed, it shows the text and points at the place.
///
/// ```
/// use busbar_proto::filter::Filter;
///
/// let error = "region in ()".parse::<Filter>().unwrap_err();
/// assert_eq!(error.at(), 11);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    text: String,
    at: usize,
    what: String,
}

impl FilterError {
    /// The place in the text, in characters from 0; the length of the text where it ends too early.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What is wrong there.
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// Characters of the text shown on either side of the place.
const SHOWN_CHARS: usize = 40;

impl std::fmt::Display for FilterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { text, at, what } = self;
        write!(f, "the filter does not parse at character {}: {what}", at + 1)?;
        let start = at.saturating_sub(SHOWN_CHARS);
        let shown: String = text.chars().skip(start).take(2 * SHOWN_CHARS).map(printable).collect();
        write!(f, "\n  {shown}\n  {:>width$}", "^", width = at - start + 1)
    }
}

/// One column for each character, whatever it is.
fn printable(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}

impl std::error::Error for FilterError {}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Comma,
    Equal,
    Unequal,
    Prefix,
    And,
    Or,
    Not,
    In,
    Exists,
    Name(String),
    Text(String),
    End,
}

impl Token {
    fn describe(&self) -> String {
        let symbol = match self {
            Self::Open => "'('",
            Self::Close => "')'",
            Self::Comma => "','",
            Self::Equal => "'='",
            Self::Unequal => "'!='",
            Self::Prefix => "'^='",
            Self::And => "'and'",
            Self::Or => "'or'",
            Self::Not => "'not'",
            Self::In => "'in'",
            Self::Exists => "'exists'",
            Self::Name(name) => return format!("the name {name:?}"),
            Self::Text(text) => return format!("the text {text:?}"),
            Self::End => "the end",
        };
        symbol.to_owned()
    }
}

struct Parser {
    chars: Vec<char>,
    /// After the token that is looked at.
    next: usize,
    /// Where that begins.
    at: usize,
    token: Token,
    depth: usize,
}

/// Where, and what.
type Fault = (usize, String);

pub(super) fn parse(text: &str) -> Result<Node, FilterError> {
    let fault = |(at, what)| FilterError { text: text.to_owned(), at, what };
    if text.len() > limits::FILTER_BYTES_MAX {
        let what = format!("it has {} bytes, at most {} are allowed", text.len(), limits::FILTER_BYTES_MAX);
        return Err(fault((0, what)));
    }
    let mut parser = Parser { chars: text.chars().collect(), next: 0, at: 0, token: Token::End, depth: 0 };
    parser.whole().map_err(fault)
}

impl Parser {
    fn whole(&mut self) -> Result<Node, Fault> {
        self.advance()?;
        let node = self.any()?;
        match self.token {
            Token::End => Ok(node),
            Token::Name(_) | Token::Not | Token::Exists | Token::Open => self.expected("'and' or 'or'"),
            _ => self.expected("the end, 'and' or 'or'"),
        }
    }

    fn any(&mut self) -> Result<Node, Fault> {
        let mut nodes = vec![self.all()?];
        while self.take(&Token::Or)? {
            nodes.push(self.all()?);
        }
        Ok(one_or(nodes, Node::Any))
    }

    fn all(&mut self) -> Result<Node, Fault> {
        let mut nodes = vec![self.unary()?];
        while self.take(&Token::And)? {
            nodes.push(self.unary()?);
        }
        Ok(one_or(nodes, Node::All))
    }

    fn unary(&mut self) -> Result<Node, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err((self.at, format!("more than {DEPTH_MAX} levels of '(' and 'not'")));
        }
        let node = if self.take(&Token::Not)? {
            Node::Not(Box::new(self.unary()?))
        } else if self.take(&Token::Open)? {
            let node = self.any()?;
            self.must(&Token::Close, "')', 'and' or 'or'")?;
            node
        } else if self.take(&Token::Exists)? {
            self.must(&Token::Open, "'(' and the name of a header")?;
            let name = self.name()?;
            self.must(&Token::Close, "')'")?;
            Node::Test { name, test: Test::Exists }
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn test(&mut self) -> Result<Node, Fault> {
        let name = self.name()?;
        let operator = self.token.clone();
        match operator {
            Token::Equal | Token::Unequal | Token::Prefix | Token::In => self.advance()?,
            _ => return self.expected("'=', '!=', '^=' or 'in' after the name of a header"),
        }
        if operator == Token::In {
            return Ok(Node::Test { name, test: Test::OneOf(self.texts()?) });
        }
        let text = self.text()?;
        Ok(match operator {
            Token::Prefix => Node::Test { name, test: Test::Prefix(text) },
            Token::Unequal => Node::Not(Box::new(Node::Test { name, test: Test::OneOf(vec![text]) })),
            _ => Node::Test { name, test: Test::OneOf(vec![text]) },
        })
    }

    fn texts(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        self.must(&Token::Open, "'(' and texts in quotes")?;
        let mut texts = Vec::new();
        loop {
            let text = self.text()?;
            if !texts.contains(&text) {
                texts.push(text);
            }
            if !self.take(&Token::Comma)? {
                break;
            }
        }
        self.must(&Token::Close, "',' or ')'")?;
        Ok(texts)
    }

    fn name(&mut self) -> Result<String, Fault> {
        let Token::Name(name) = self.token.clone() else {
            return self.expected("the name of a header, 'not', 'exists' or '('");
        };
        self.advance()?;
        Ok(name)
    }

    fn text(&mut self) -> Result<Vec<u8>, Fault> {
        let Token::Text(text) = self.token.clone() else {
            return self.expected("a text in quotes");
        };
        self.advance()?;
        Ok(text.into_bytes())
    }

    fn take(&mut self, token: &Token) -> Result<bool, Fault> {
        let found = self.token == *token;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn must(&mut self, token: &Token, what: &str) -> Result<(), Fault> {
        if self.take(token)? { Ok(()) } else { self.expected(what) }
    }

    fn expected<T>(&self, what: &str) -> Result<T, Fault> {
        Err((self.at, format!("expected {what}, found {}", self.token.describe())))
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.next).copied()
    }

    fn advance(&mut self) -> Result<(), Fault> {
        while self.peek().is_some_and(char::is_whitespace) {
            self.next += 1;
        }
        self.at = self.next;
        let Some(first) = self.peek() else {
            self.token = Token::End;
            return Ok(());
        };
        self.next += 1;
        self.token = match first {
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' => Token::Equal,
            '!' | '^' => {
                if self.peek() != Some('=') {
                    return Err((self.next, format!("expected '=' after {first:?}")));
                }
                self.next += 1;
                if first == '!' { Token::Unequal } else { Token::Prefix }
            }
            '\'' | '"' => Token::Text(self.quoted(first)?),
            '`' => Token::Name(self.quoted(first)?),
            bare if is_bare(bare) => self.word(),
            other => return Err((self.at, format!("{other:?} has no meaning here"))),
        };
        Ok(())
    }

    fn quoted(&mut self, quote: char) -> Result<String, Fault> {
        let mut text = String::new();
        while let Some(character) = self.peek() {
            self.next += 1;
            match character {
                end if end == quote => return Ok(text),
                '\\' => match self.peek() {
                    Some(escaped) => {
                        self.next += 1;
                        text.push(escaped);
                    }
                    None => break,
                },
                plain => text.push(plain),
            }
        }
        Err((self.at, format!("the quote {quote} is not closed")))
    }

    fn word(&mut self) -> Token {
        while self.peek().is_some_and(is_bare) {
            self.next += 1;
        }
        let word: String = self.chars.get(self.at..self.next).unwrap_or_default().iter().collect();
        match word.to_ascii_lowercase().as_str() {
            "and" => Token::And,
            "or" => Token::Or,
            "not" => Token::Not,
            "in" => Token::In,
            "exists" => Token::Exists,
            _ => Token::Name(word),
        }
    }
}

fn is_bare(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '.' | ':' | '/' | '-')
}

fn one_or(mut nodes: Vec<Node>, many: impl FnOnce(Vec<Node>) -> Node) -> Node {
    match nodes.len() {
        1 => nodes.remove(0),
        _ => many(nodes),
    }
}
