//! stdout: text for people or JSON lines for programs.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

/// Where a command's output goes.
pub(super) struct Out<W: Write> {
    to: BufWriter<W>,
    /// Whether JSON was asked for.
    pub(super) json: bool,
}

impl<W: Write> Out<W> {
    pub(super) fn new(to: W, json: bool) -> Self {
        Self {
            to: BufWriter::with_capacity(64 << 10, to),
            json,
        }
    }

    /// One JSON object on a line of its own.
    pub(super) fn object(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, object)?;
        self.to.write_all(b"\n")
    }

    /// JSON if that was asked for, else the text.
    pub(super) fn either(
        &mut self,
        object: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        if self.json {
            self.object(object)
        } else {
            self.to.write_all(text().as_bytes())
        }
    }

    /// Text as it is.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        self.to.write_all(text.as_bytes())
    }

    /// Hands everything to the reader.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
