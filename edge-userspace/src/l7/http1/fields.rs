//! Lines of a head, one after the other.

use super::super::head::{Field, Known, Of, Reject, Span, check};

/// What a look at the buffer found.
pub(super) enum Line {
    /// The line is not yet complete.
    Partial,
    /// A field, which has been appended, and where the next line begins.
    Field(usize),
    /// The empty line, and what is behind it.
    End(usize),
}

/// Reads the line that begins at `start`, and appends the field that is in it.
#[inline]
pub(super) fn line(
    buf: &[u8],
    start: usize,
    of: Of,
    max: usize,
    fields: &mut Vec<Field>,
) -> Result<Line, Reject> {
    let rest = buf.get(start..).unwrap_or_default();
    let (len, underscore) = check::token(rest);
    let name_end = start + len;
    match rest.get(len) {
        None => return Ok(Line::Partial),
        Some(b':') if len > 0 => {}
        Some(other) => return odd_name(buf, start, len, *other),
    }
    let mut value = name_end + 1;
    while buf.get(value).copied().is_some_and(check::is_space) {
        value += 1;
    }
    let stop = value + check::text(&buf[value..]);
    match buf.get(stop..) {
        Some([b'\r', b'\n', ..]) => {}
        Some([] | [b'\r']) | None => return Ok(Line::Partial),
        Some([byte, ..]) => return Err(check::not_text(*byte)),
    }
    let mut end = stop;
    while end > value && check::is_space(buf[end - 1]) {
        end -= 1;
    }
    let name = Span::new(start, name_end);
    let known = Known::of(name.of(buf));
    if fields.len() >= max {
        return Err(Reject::FieldsTooMany);
    }
    fields.push(Field {
        name,
        value: Span::new(value, end),
        known,
        kept: !(known.is_hop_by_hop() || underscore && of == Of::Request),
    });
    Ok(Line::Field(stop + 2))
}

/// A line whose name, `len` bytes from `start`, ends with something else than a colon.
#[cold]
fn odd_name(buf: &[u8], start: usize, len: usize, byte: u8) -> Result<Line, Reject> {
    Err(match byte {
        b'\r' => match buf.get(start + len + 1) {
            None => return Ok(Line::Partial),
            Some(b'\n') if len == 0 => return Ok(Line::End(start + 2)),
            Some(b'\n') => Reject::ColonMissing,
            Some(_) => Reject::BareCr,
        },
        b'\n' => Reject::BareLf,
        0 => Reject::Nul,
        b':' => Reject::FieldNameEmpty,
        b' ' | b'\t' if len == 0 => Reject::ObsFold,
        b' ' | b'\t' => Reject::SpaceBeforeColon,
        _ => Reject::FieldNameByte,
    })
}

/// Reads fields from `*resume` on until the empty line, and leaves in `resume` where an
/// incomplete line begins. Says where the head ends, if it has been seen.
#[inline]
pub(super) fn fields(
    buf: &[u8],
    resume: &mut usize,
    fields: &mut Vec<Field>,
    max: usize,
    of: Of,
) -> Result<Option<usize>, Reject> {
    loop {
        match line(buf, *resume, of, max, fields)? {
            Line::Partial => return Ok(None),
            Line::End(end) => return Ok(Some(end)),
            Line::Field(next) => *resume = next,
        }
    }
}
