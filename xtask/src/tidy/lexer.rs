//! Just enough of Rust's lexical rules to find paths: comments, strings and test modules fall away.

/// A token that matters to paths. Literals and comments leave none, save that a string leaves
/// [`Token::Literal`] so that neighbours are not joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// An identifier or keyword; raw ones without `r#`.
    Ident(String),
    /// `::`
    Sep,
    /// Any other single character.
    Punct(char),
    /// A string, character or number.
    Literal,
}

/// A token and the line it starts on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    pub(super) line: usize,
}

/// A path as written, with every group expanded: `a::{b, c::d}` is `a::b` and `a::c::d`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

/// Splits Rust source into tokens.
pub(super) fn lex(text: &str) -> Vec<Lexeme> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer {
        chars: &chars,
        at: 0,
        line: 1,
        out: Vec::new(),
    };
    while lexer.at < chars.len() {
        lexer.step();
    }
    lexer.out
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    line: usize,
    out: Vec<Lexeme>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn bump(&mut self) {
        if self.peek(0) == '\n' {
            self.line += 1;
        }
        self.at += 1;
    }

    fn push(&mut self, token: Token, line: usize) {
        self.out.push(Lexeme { token, line });
    }

    fn step(&mut self) {
        let line = self.line;
        match self.peek(0) {
            '/' if self.peek(1) == '/' => {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.bump();
                }
            }
            '/' if self.peek(1) == '*' => self.block_comment(),
            '"' => self.string(line),
            '\'' => self.quote(line),
            ':' if self.peek(1) == ':' => {
                self.at += 2;
                self.push(Token::Sep, line);
            }
            c if c.is_alphabetic() || c == '_' => self.word(line),
            c if c.is_ascii_digit() => {
                while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                    self.bump();
                }
                self.push(Token::Literal, line);
            }
            c => {
                self.bump();
                if !c.is_whitespace() {
                    self.push(Token::Punct(c), line);
                }
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => {
                    depth += 1;
                    self.at += 2;
                }
                ('*', '/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.bump(),
            }
        }
    }

    fn string(&mut self, line: usize) {
        self.bump();
        while self.at < self.chars.len() {
            match self.peek(0) {
                '\\' => {
                    self.bump();
                    self.bump();
                }
                '"' => {
                    self.bump();
                    break;
                }
                _ => self.bump(),
            }
        }
        self.push(Token::Literal, line);
    }

    /// A character literal, or the tick of a lifetime.
    fn quote(&mut self, line: usize) {
        self.bump();
        if self.peek(0) == '\\' {
            self.bump();
            self.bump();
            while self.at < self.chars.len() && self.peek(0) != '\'' {
                self.bump();
            }
            self.bump();
            self.push(Token::Literal, line);
        } else if self.peek(1) == '\'' {
            self.bump();
            self.bump();
            self.push(Token::Literal, line);
        } else {
            while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                self.bump();
            }
        }
    }

    /// An identifier, or the prefix of a raw or byte string.
    fn word(&mut self, line: usize) {
        let start = self.at;
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            self.bump();
        }
        let word: String = self.chars[start..self.at].iter().collect();
        let raw = matches!(word.as_str(), "r" | "br" | "cr");
        if raw && self.raw_string(line) {
            return;
        }
        match self.peek(0) {
            '"' if matches!(word.as_str(), "b" | "c") => self.string(line),
            '\'' if word == "b" => self.quote(line),
            '#' if word == "r" => {
                self.bump();
                self.word(line);
            }
            _ => self.push(Token::Ident(word), line),
        }
    }

    /// After `r`: consumes `#*"…"#*` if that is what follows.
    fn raw_string(&mut self, line: usize) -> bool {
        let hashes = (0..).take_while(|&n| self.peek(n) == '#').count();
        if self.peek(hashes) != '"' {
            return false;
        }
        self.at += hashes + 1;
        while self.at < self.chars.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|n| self.peek(n) == '#');
            self.bump();
            if closes {
                self.at += hashes;
                break;
            }
        }
        self.push(Token::Literal, line);
        true
    }
}

/// Takes away every item that is compiled only for tests.
pub(super) fn without_tests(lexemes: &[Lexeme]) -> Vec<Lexeme> {
    let mut out = Vec::with_capacity(lexemes.len());
    let mut at = 0;
    while at < lexemes.len() {
        if is_punct(lexemes, at, '#') && is_punct(lexemes, at + 1, '[') {
            let end = matching(lexemes, at + 1);
            if is_test_attribute(&lexemes[at..end]) {
                at = item_end(lexemes, end);
                continue;
            }
            out.extend_from_slice(&lexemes[at..end]);
            at = end;
        } else {
            out.push(lexemes[at].clone());
            at += 1;
        }
    }
    out
}

/// `#[cfg(test)]`, `#[cfg(all(test, …))]`, `#[test]`; not `#[cfg(not(test))]`.
fn is_test_attribute(lexemes: &[Lexeme]) -> bool {
    let words: Vec<&str> = lexemes
        .iter()
        .filter_map(|lexeme| match &lexeme.token {
            Token::Ident(word) => Some(word.as_str()),
            _ => None,
        })
        .collect();
    match words.first() {
        Some(&"test") => words.len() == 1,
        Some(&"cfg") => words.contains(&"test") && !words.contains(&"not"),
        _ => false,
    }
}

/// The position after the item that starts at `at`, further attributes included.
fn item_end(lexemes: &[Lexeme], mut at: usize) -> usize {
    while at < lexemes.len() {
        if is_punct(lexemes, at, '{') {
            return matching(lexemes, at);
        }
        if is_punct(lexemes, at, ';') {
            return at + 1;
        }
        if is_punct(lexemes, at, '(') || is_punct(lexemes, at, '[') {
            at = matching(lexemes, at);
        } else {
            at += 1;
        }
    }
    at
}

/// The position after the bracket that closes the one at `open`.
fn matching(lexemes: &[Lexeme], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, lexeme) in lexemes.iter().enumerate().skip(open) {
        match lexeme.token {
            Token::Punct('(' | '[' | '{') => depth += 1,
            Token::Punct(')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    lexemes.len()
}

fn is_punct(lexemes: &[Lexeme], at: usize, c: char) -> bool {
    lexemes
        .get(at)
        .is_some_and(|lexeme| lexeme.token == Token::Punct(c))
}

/// Every path of two segments or more, and every one-segment `use`.
pub(super) fn paths(lexemes: &[Lexeme]) -> Vec<Path> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < lexemes.len() {
        let Token::Ident(word) = &lexemes[at].token else {
            at += 1;
            continue;
        };
        let after_use =
            at > 0 && matches!(&lexemes[at - 1].token, Token::Ident(previous) if previous == "use");
        let has_more = lexemes
            .get(at + 1)
            .is_some_and(|next| next.token == Token::Sep);
        if has_more || (after_use && word != "crate") {
            at = tree(lexemes, at, &mut Vec::new(), &mut out);
        } else {
            at += 1;
        }
    }
    out
}

/// Reads one tree of a `use`, or a plain path, from `at`; returns the position after it.
fn tree(lexemes: &[Lexeme], mut at: usize, prefix: &mut Vec<String>, out: &mut Vec<Path>) -> usize {
    let depth = prefix.len();
    let line = lexemes.get(at).map_or(0, |lexeme| lexeme.line);
    loop {
        match lexemes.get(at).map(|lexeme| &lexeme.token) {
            Some(Token::Ident(word)) => {
                prefix.push(word.clone());
                at += 1;
            }
            Some(Token::Punct('*')) => {
                at += 1;
                break;
            }
            Some(Token::Punct('{')) => {
                let end = matching(lexemes, at);
                at += 1;
                while at + 1 < end {
                    let before = at;
                    at = tree(lexemes, at, prefix, out);
                    while at + 1 < end && !is_punct(lexemes, at, ',') {
                        at += 1;
                    }
                    at = (at + 1).max(before + 1);
                }
                prefix.truncate(depth);
                return end;
            }
            _ => break,
        }
        if lexemes
            .get(at)
            .is_some_and(|lexeme| lexeme.token == Token::Sep)
        {
            at += 1;
        } else {
            break;
        }
    }
    let mut segments = prefix.clone();
    if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
        segments.pop();
    }
    out.push(Path { segments, line });
    prefix.truncate(depth);
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        paths(&without_tests(&lex(text)))
            .into_iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn groups_are_expanded() {
        assert_eq!(
            found("use crate::{a::{self, b}, c::*, d as e};\nuse aya;"),
            ["crate::a", "crate::a::b", "crate::c", "crate::d", "aya"]
        );
    }

    #[test]
    fn paths_in_code_are_found_with_their_line() {
        let all = paths(&lex("fn f() {\n    crate::x::y(1);\n}"));
        assert_eq!(all.len(), 1);
        assert_eq!(
            (all[0].segments.join("::").as_str(), all[0].line),
            ("crate::x::y", 2)
        );
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        let text = "// crate::a::b\n/* /* x::y */ z::w */ let s = \"aya::c \\\" d::e\";\n\
            let r = r#\"g::h \"i::j\"#; let c = '\"'; let t: &'static str = b\"k::l\"; let q = '\\'';";
        assert_eq!(found(text), Vec::<String>::new());
    }

    #[test]
    fn tests_are_left_out_and_the_rest_is_not() {
        let text = "#[cfg(test)]\nmod tests { use std::fs; fn f() { g::h(); } }\n\
            #[cfg(not(test))]\nuse a::b;\n#[cfg(all(test, unix))]\nuse c::d;\n#[derive(x::Y)] struct S;";
        assert_eq!(found(text), ["a::b", "x::Y"]);
    }

    #[test]
    fn generics_and_lifetimes_do_not_confuse() {
        assert_eq!(
            found("impl<'a> Foo<'a> for a::B<c::D> { fn r#fn() -> Vec<u8> { e::f::<g::H>() } }"),
            ["a::B", "c::D", "e::f", "g::H"]
        );
    }

    #[test]
    fn unbalanced_text_ends() {
        found("use a::{b, {c");
        found("#[cfg(test)] mod x {");
        found("/* open");
        found("\"open");
        found("r#\"open");
        found("use ::{,};");
    }
}
