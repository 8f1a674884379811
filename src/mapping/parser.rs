//! The text form of expressions.

use serde_json::value::RawValue;

use crate::mapping::expression::{Expression, Function, Kind, Step};

/// Deeper nesting of functions is refused, to protect the stack.
const MAX_DEPTH: usize = 32;

/// A text, and the position up to which it was read.
pub(crate) struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Parser { text, at: 0, depth: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    pub(crate) fn is_at_end(&mut self) -> bool {
        self.skip_space();
        self.rest().is_empty()
    }

    /// Skips this text if it is next.
    pub(crate) fn eat(&mut self, text: &str) -> bool {
        self.skip_space();
        let is_next = self.rest().starts_with(text);
        if is_next {
            self.at += text.len();
        }
        is_next
    }

    pub(crate) fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.eat(text) { Ok(()) } else { Err(self.wrong(&format!("{text} is expected"))) }
    }

    /// An error at the current position.
    fn wrong(&self, reason: &str) -> String {
        match self.rest().chars().next() {
            None => format!("{reason} at the end of {:?}", self.text),
            Some(_) => format!("{reason} at {:?}", self.rest()),
        }
    }

    /// Takes characters that satisfy the condition.
    fn take_while(&mut self, is_such: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|character| !is_such(character)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// The name of a field, a format or a function.
    pub(crate) fn name(&mut self) -> Result<&'a str, String> {
        self.skip_space();
        let start = self.at;
        let name = self.take_while(|character| character.is_ascii_alphanumeric() || character == '_');
        if name.is_empty() {
            self.at = start;
            return Err(self.wrong("a name is expected"));
        }
        Ok(name)
    }

    /// One expression, or alternatives.
    pub(crate) fn expression(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} functions, one in the other"));
        }
        let expression = self.list("//", |parser| parser.list("+", Parser::term, Kind::Join), Kind::First);
        self.depth -= 1;
        expression
    }

    /// One part, or several with a separator.
    fn list(
        &mut self,
        between: &str,
        part: impl Fn(&mut Self) -> Result<Expression, String>,
        kind: impl Fn(Vec<Expression>) -> Kind,
    ) -> Result<Expression, String> {
        self.skip_space();
        let start = self.at;
        let first = part(self)?;
        if !self.eat(between) {
            return Ok(first);
        }
        let mut parts = vec![first, part(self)?];
        while self.eat(between) {
            parts.push(part(self)?);
        }
        Ok(Expression::new(&self.text[start..self.at], kind(parts)))
    }

    fn term(&mut self) -> Result<Expression, String> {
        self.skip_space();
        let start = self.at;
        let kind = match self.rest().chars().next() {
            Some('.') => return self.path(),
            Some(character) if character.is_ascii_alphabetic() => self.call_or_word()?,
            Some('"' | '{' | '[' | '-' | '0'..='9') => self.constant()?,
            _ => return Err(self.wrong("a path such as .id, a \"text\" or a function is expected")),
        };
        Ok(Expression::new(&self.text[start..self.at], kind))
    }

    fn call_or_word(&mut self) -> Result<Kind, String> {
        let start = self.at;
        let name = self.name()?;
        if matches!(name, "true" | "false" | "null") {
            return Ok(Kind::Constant(name.to_owned()));
        }
        if !self.eat("(") {
            self.at = start;
            return Err(
                self.wrong("a path begins with a dot, a text is in quotes, a function has brackets: one is expected")
            );
        }
        let kind = match (name, Function::ALL.iter().find(|(function, _)| *function == name)) {
            ("number", _) => Kind::Number,
            ("rest", _) => Kind::Rest,
            (_, Some((_, function))) => Kind::Call(*function, Box::new(self.expression()?)),
            (_, None) => {
                let names: Vec<_> = Function::ALL.iter().map(|(name, _)| *name).collect();
                return Err(format!("{name:?} is none of the functions {}, number, rest", names.join(", ")));
            }
        };
        self.expect(")")?;
        Ok(kind)
    }

    /// Any JSON.
    fn constant(&mut self) -> Result<Kind, String> {
        if !self.rest().starts_with(['"', '{', '[']) {
            return self.number();
        }
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<&RawValue>();
        match values.next() {
            Some(Ok(json)) => {
                let kind = Kind::Constant(json.get().to_owned());
                self.at += values.byte_offset();
                Ok(kind)
            }
            _ => Err(self.wrong("JSON is expected")),
        }
    }

    fn number(&mut self) -> Result<Kind, String> {
        let start = self.at;
        let number = self.take_while(|character| character.is_ascii_digit() || "-.eE".contains(character));
        match serde_json::from_str::<&RawValue>(number) {
            Ok(_) => Ok(Kind::Constant(number.to_owned())),
            Err(_) => {
                self.at = start;
                Err(self.wrong("a number is expected"))
            }
        }
    }

    /// A path: `.` and keys separated by dots, or indexes and quoted keys in brackets.
    pub(crate) fn path(&mut self) -> Result<Expression, String> {
        self.skip_space();
        let start = self.at;
        if !self.rest().starts_with('.') {
            return Err(self.wrong("a path such as .id is expected"));
        }
        let mut steps = Vec::new();
        loop {
            // No spaces are allowed inside a path.
            if self.rest().starts_with('[') {
                self.at += 1;
                steps.push(self.in_brackets()?);
                self.expect("]")?;
            } else if self.rest().starts_with('.') {
                self.at += 1;
                match self.key()? {
                    Some(key) => steps.push(Step::Key(key)),
                    // A single dot, or a dot before a bracket.
                    None if steps.is_empty() => {}
                    None => return Err(self.wrong("a key is expected")),
                }
            } else {
                return Ok(Expression::new(&self.text[start..self.at], Kind::Path(steps)));
            }
            if self.text[start..self.at].ends_with('.') && !self.rest().starts_with('[') {
                return Ok(Expression::new(&self.text[start..self.at], Kind::Path(steps)));
            }
        }
    }

    fn key(&mut self) -> Result<Option<String>, String> {
        if self.rest().starts_with('"') {
            return self.quoted().map(Some);
        }
        let is_plain = |character: char| character.is_alphanumeric() || "_-$@#:".contains(character);
        Ok(Some(self.take_while(is_plain).to_owned()).filter(|key| !key.is_empty()))
    }

    fn in_brackets(&mut self) -> Result<Step, String> {
        self.skip_space();
        if self.rest().starts_with('"') {
            return self.quoted().map(Step::Key);
        }
        let start = self.at;
        let digits = self.take_while(|character| character.is_ascii_digit());
        digits.parse().map(Step::Index).map_err(|_| {
            self.at = start;
            self.wrong("a number from 0 on or a \"key\" is expected")
        })
    }

    fn quoted(&mut self) -> Result<String, String> {
        let start = self.at;
        match self.constant()? {
            Kind::Constant(json) => serde_json::from_str(&json).map_err(|_| {
                self.at = start;
                self.wrong("a \"key\" is expected")
            }),
            _ => Err(self.wrong("a \"key\" is expected")),
        }
    }
}
