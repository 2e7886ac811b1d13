//! Lines of the access log: one a request, JSON or logfmt.
//!
//! What clients send is bytes, of whatever encoding. What is no visible ASCII goes into the line
//! escaped, so that no client can begin a line of its own or break a reader.

use std::{io::Write as _, net::SocketAddr};

use super::head::decimal;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line (RFC 8259).
    #[default]
    Json,
    /// `key=value` pairs.
    Logfmt,
}

/// A request as it is logged. Times are microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When its first byte came, Unix time, milliseconds.
    pub time_unix_ms: u64,
    /// Its id, hexadecimal.
    pub request_id: &'a [u8],
    /// Its trace (W3C Trace Context), hexadecimal.
    pub trace_id: &'a [u8],
    /// The client, as proxies that are trusted tell.
    pub client: SocketAddr,
    /// By which listener it came.
    pub listener: &'a str,
    /// Which route it took, if any.
    pub route: Option<&'a str>,
    /// Which upstream answered, if one did.
    pub upstream: Option<&'a str>,
    /// Which of its servers.
    pub server: Option<&'a str>,
    /// Method.
    pub method: &'a [u8],
    /// Host, without what is left out of comparisons.
    pub host: &'a [u8],
    /// Path and query as they came.
    pub target: &'a [u8],
    /// `1.0`, `1.1` or `2`.
    pub version: &'a str,
    /// Status of the answer; 0 when the client went away before.
    pub status: u16,
    /// Bytes of the body that came.
    pub received: u64,
    /// Bytes of the body that went.
    pub sent: u64,
    /// From the first byte that came to the last that went.
    pub duration: u64,
    /// Waiting for its turn.
    pub queued: u64,
    /// Until there was a connection to the server.
    pub connect: u64,
    /// From there until its answer began.
    pub first_byte: u64,
    /// How often it was sent to a server.
    pub tries: u32,
    /// Why it was refused or failed, if it was.
    pub reason: Option<&'a str>,
    /// The header of that name.
    pub user_agent: Option<&'a [u8]>,
}

/// Appends the line of a request.
pub fn write(format: Format, record: &Record<'_>, out: &mut Vec<u8>) {
    let mut line = Line {
        out,
        format,
        is_first: true,
    };
    line.begin();
    line.time("time", record.time_unix_ms);
    line.text("request_id", record.request_id);
    line.text("trace_id", record.trace_id);
    line.key("client");
    // Addresses have nothing to be escaped.
    match format {
        Format::Json => drop(write!(line.out, "\"{}\"", record.client)),
        Format::Logfmt => drop(write!(line.out, "{}", record.client)),
    }
    line.text("listener", record.listener.as_bytes());
    line.maybe("route", record.route.map(str::as_bytes));
    line.maybe("upstream", record.upstream.map(str::as_bytes));
    line.maybe("server", record.server.map(str::as_bytes));
    line.text("method", record.method);
    line.text("host", record.host);
    line.text("target", record.target);
    line.text("version", record.version.as_bytes());
    line.number("status", record.status.into());
    line.number("received", record.received);
    line.number("sent", record.sent);
    line.number("duration_us", record.duration);
    // Some wait for their turn and never get it.
    if record.tries > 0 || record.queued > 0 {
        line.number("queued_us", record.queued);
    }
    if record.tries > 0 {
        line.number("connect_us", record.connect);
        line.number("first_byte_us", record.first_byte);
        line.number("tries", record.tries.into());
    }
    line.maybe("reason", record.reason.map(str::as_bytes));
    line.maybe("user_agent", record.user_agent);
    line.end();
}

struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
    is_first: bool,
}

impl Line<'_> {
    fn begin(&mut self) {
        if self.format == Format::Json {
            self.out.push(b'{');
        }
    }

    fn end(&mut self) {
        if self.format == Format::Json {
            self.out.push(b'}');
        }
        self.out.push(b'\n');
    }

    fn key(&mut self, key: &str) {
        let first = std::mem::replace(&mut self.is_first, false);
        match self.format {
            Format::Json => {
                self.out
                    .extend_from_slice(if first { b"\"" } else { b",\"" });
                self.out.extend_from_slice(key.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            Format::Logfmt => {
                if !first {
                    self.out.push(b' ');
                }
                self.out.extend_from_slice(key.as_bytes());
                self.out.push(b'=');
            }
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        decimal::write(self.out, value);
    }

    /// RFC 3339, UTC, milliseconds.
    fn time(&mut self, key: &str, unix_ms: u64) {
        self.key(key);
        let quote = self.format == Format::Json;
        if quote {
            self.out.push(b'"');
        }
        timestamp(unix_ms, self.out);
        if quote {
            self.out.push(b'"');
        }
    }

    fn maybe(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn text(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        let plain = |b: &u8| (b' '..=b'~').contains(b) && *b != b'"' && *b != b'\\';
        let quote = self.format == Format::Json
            || value.is_empty()
            || value.iter().any(|b| !plain(b) || matches!(b, b' ' | b'='));
        if quote {
            self.out.push(b'"');
        }
        let mut rest = value;
        // Whole runs of what needs no escape.
        while !rest.is_empty() {
            let run = rest.iter().position(|b| !plain(b)).unwrap_or(rest.len());
            let (good, tail) = rest.split_at(run);
            self.out.extend_from_slice(good);
            let Some((&odd, tail)) = tail.split_first() else {
                break;
            };
            match odd {
                b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', odd]),
                // As if it were Latin-1: every byte can be told from every other.
                _ => {
                    self.out.extend_from_slice(b"\\u00");
                    self.out.extend_from_slice(&[
                        HEX[usize::from(odd >> 4)],
                        HEX[usize::from(odd & 15)],
                    ]);
                }
            }
            rest = tail;
        }
        if quote {
            self.out.push(b'"');
        }
    }
}

const HEX: [u8; 16] = *b"0123456789abcdef";

/// Appends a moment, Unix time in milliseconds, as RFC 3339 has it, in UTC.
fn timestamp(unix_ms: u64, out: &mut Vec<u8>) {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let mut part = |value: u64, width: u32, end: &[u8]| {
        for i in (0..width).rev() {
            out.push(b'0' + (value / 10u64.pow(i) % 10) as u8);
        }
        out.extend_from_slice(end);
    };
    part(year, 4, b"-");
    part(month, 2, b"-");
    part(day, 2, b"T");
    part(hour, 2, b":");
    part(minute, 2, b":");
    part(second, 2, b".");
    part(ms % 1000, 3, b"Z");
}

/// Appends a moment, Unix time in seconds, as HTTP has it (RFC 9110, section 5.6.7).
pub fn http_date(unix: u64, out: &mut Vec<u8>) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (days, second) = (unix / 86_400, unix % 86_400);
    let (year, month, date) = civil(days);
    let name = DAYS[(days % 7) as usize];
    let month = MONTHS[(month as usize - 1) % 12];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // Writing to memory does not fail.
    let _ = write!(
        out,
        "{name}, {date:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
    );
}

/// The date of a day, counted from 1970-01-01: by eras of 400 years that begin in March, so
/// that a leap day is the last of its year.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<'static> {
        Record {
            time_unix_ms: 1_709_164_799_007,
            request_id: b"00ff",
            trace_id: b"ab",
            client: ([192, 0, 2, 1], 4711).into(),
            listener: "web",
            route: Some("app"),
            upstream: Some("app"),
            server: Some("10.0.0.1:80"),
            method: b"GET",
            host: b"example.com",
            target: b"/a?b=\"c\"\\\x01\xff",
            version: "1.1",
            status: 200,
            received: 0,
            sent: 1024,
            duration: 1500,
            queued: 0,
            connect: 10,
            first_byte: 1400,
            tries: 1,
            reason: None,
            user_agent: Some(b"x y"),
        }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let mut out = Vec::new();
        write(Format::Json, &record(), &mut out);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(value["time"], "2024-02-28T23:59:59.007Z");
        assert_eq!(value["target"], "/a?b=\"c\"\\\u{1}\u{ff}");
        assert_eq!(value["client"], "192.0.2.1:4711");
        assert_eq!(value["sent"], 1024);
        assert!(value.get("reason").is_none());
    }

    #[test]
    fn a_line_of_logfmt_has_no_break_in_it() {
        let mut out = Vec::new();
        write(Format::Logfmt, &record(), &mut out);
        let line = String::from_utf8(out).expect("ASCII");
        assert!(line.starts_with("time=2024-02-28T23:59:59.007Z request_id=00ff"));
        assert!(
            line.contains(r#" target="/a?b=\"c\"\\\u0001\u00ff" "#),
            "{line}"
        );
        assert!(line.ends_with("user_agent=\"x y\"\n"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |days| civil(days);
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(19_722), (2023, 12, 31));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn http_has_dates_of_its_own() {
        let mut out = Vec::new();
        http_date(784_111_777, &mut out);
        assert_eq!(out, b"Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
