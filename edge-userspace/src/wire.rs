//! How the types of `edge-common`, which knows no serde, are written in JSON:
//! as the words and addresses that people use for them.

use std::{fmt, marker::PhantomData, str::FromStr};

use edge_common::{
    abi::{LimitKind, Mode},
    reason::Reason,
};
use serde::{Deserialize, Deserializer, Serializer, de};

/// A closed set of values with a word for each.
pub trait Word: Copy + 'static {
    /// What a value is called in an error.
    const WHAT: &'static str;
    /// Every value.
    const VALUES: &'static [Self];
    /// The word for it.
    fn word(self) -> &'static str;

    /// The value of a word, or `None` when there is none.
    fn of(word: &str) -> Option<Self> {
        Self::VALUES.iter().copied().find(|v| v.word() == word)
    }
}

impl Word for Reason {
    const WHAT: &'static str = "a reason (`edge reasons` lists them)";
    const VALUES: &'static [Self] = Self::ALL;
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Word for LimitKind {
    const WHAT: &'static str = "a limit: packets, bytes, syn, udp or icmp";
    const VALUES: &'static [Self] = &Self::ALL;
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Word for Mode {
    const WHAT: &'static str = "a mode: off, dry-run or enforce";
    const VALUES: &'static [Self] = &Self::ALL;
    fn word(self) -> &'static str {
        self.name()
    }
}

struct WordVisitor<T>(PhantomData<T>);

impl<T: Word> de::Visitor<'_> for WordVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_str<E: de::Error>(self, s: &str) -> Result<T, E> {
        T::of(s).ok_or_else(|| E::invalid_value(de::Unexpected::Str(s), &self))
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, s: &str) -> Result<T, E> {
        // A stranger's text is repeated in the message only when it is short.
        s.parse().map_err(|e| match s.get(..64) {
            None => E::custom(format_args!("{s:?}: {e}")),
            Some(_) => E::custom(e),
        })
    }
}

/// `#[serde(with)]` for a [`Word`].
pub mod word {
    use super::{Deserializer, PhantomData, Serializer, Word, WordVisitor};

    /// Writes the word.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Word, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(value.word())
    }

    /// Reads the word.
    ///
    /// # Errors
    /// The word is none of the set.
    pub fn deserialize<'de, T: Word, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        d.deserialize_str(WordVisitor(PhantomData))
    }
}

/// `#[serde(with)]` for an optional [`Word`]; `null` for none.
pub mod word_option {
    use super::{Deserialize, Deserializer, Serializer, Word, word};

    struct In<T>(T);

    impl<'de, T: Word> Deserialize<'de> for In<T> {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            word::deserialize(d).map(Self)
        }
    }

    /// Writes the word or `null`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Word, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(v) => s.serialize_str(v.word()),
            None => s.serialize_none(),
        }
    }

    /// Reads the word or `null`.
    ///
    /// # Errors
    /// The word is none of the set.
    pub fn deserialize<'de, T: Word, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
        Ok(Option::<In<T>>::deserialize(d)?.map(|v| v.0))
    }
}

/// `#[serde(with)]` for a type that is written as its text, such as a prefix.
pub mod text {
    use super::{Deserializer, FromStr, PhantomData, Serializer, TextVisitor, fmt};

    /// Writes the text.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: fmt::Display, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    /// Reads the text.
    ///
    /// # Errors
    /// The text is none of the type.
    pub fn deserialize<'de, T, D>(d: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        d.deserialize_str(TextVisitor(PhantomData))
    }
}

/// `#[serde(with)]` for an optional type that is written as its text; `null` for none.
pub mod text_option {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt, text};

    struct In<T>(T);

    impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for In<T> {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            text::deserialize(d).map(Self)
        }
    }

    /// Writes the text or `null`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T, S>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error>
    where
        T: fmt::Display,
        S: Serializer,
    {
        match value {
            Some(v) => s.collect_str(v),
            None => s.serialize_none(),
        }
    }

    /// Reads the text or `null`.
    ///
    /// # Errors
    /// The text is none of the type.
    pub fn deserialize<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        Ok(Option::<In<T>>::deserialize(d)?.map(|v| v.0))
    }
}

/// `#[serde(with)]` for many of a type that is written as its text.
pub mod texts {
    use super::{Deserializer, FromStr, PhantomData, Serializer, TextVisitor, de, fmt};

    struct Out<'a, T>(&'a T);

    impl<T: fmt::Display> serde::Serialize for Out<'_, T> {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.collect_str(self.0)
        }
    }

    struct SeqVisitor<T>(PhantomData<T>);

    struct Seed<T>(PhantomData<T>);

    impl<'de, T: FromStr<Err: fmt::Display>> de::DeserializeSeed<'de> for Seed<T> {
        type Value = T;

        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<T, D::Error> {
            d.deserialize_str(TextVisitor(PhantomData))
        }
    }

    impl<'de, T: FromStr<Err: fmt::Display>> de::Visitor<'de> for SeqVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of strings")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = seq.next_element_seed(Seed(PhantomData))? {
                all.push(item);
            }
            Ok(all)
        }
    }

    /// Writes an array of texts.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: fmt::Display, S: Serializer>(
        values: &[T],
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(values.iter().map(Out))
    }

    /// Reads an array of texts.
    ///
    /// # Errors
    /// One of the texts is none of the type.
    pub fn deserialize<'de, T, D>(d: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        d.deserialize_seq(SeqVisitor(PhantomData))
    }
}
