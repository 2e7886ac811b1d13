//! Why a message is refused.

macro_rules! rejects {
    ($($variant:ident $status:literal $name:literal $sentence:literal,)*) => {
        /// Why a message is refused: one reason each.
        ///
        /// The connection is closed after each of them, as nobody knows where the next message
        /// would begin. When the message is an upstream's answer, the client gets 502
        /// whatever [`Reject::status`] says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reject {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reject {
            /// Every reason, in the order of [`Reject::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The status of the answer to a request.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)*
                }
            }

            /// The stable name, for metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// A sentence for a person.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)*
                }
            }

            /// Its position in [`Reject::ALL`].
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

rejects! {
    // The request line.
    EmptyLines 400 "empty_lines" "More than one empty line precedes the request line.",
    MethodByte 400 "method_byte" "The method has a byte that no method may have.",
    MethodTooLong 501 "method_too_long" "The method is longer than any that is known.",
    MethodConnect 501 "method_connect" "CONNECT is not offered: this is no forward proxy.",
    RequestLineSpace 400 "request_line_space" "White space in the request line other than two single spaces.",
    TargetByte 400 "target_byte" "The request target has a byte outside of visible ASCII.",
    TargetFragment 400 "target_fragment" "The request target has a fragment.",
    TargetForm 400 "target_form" "The request target is neither a path nor an http or https URI, or it is * and the method is not OPTIONS.",
    TargetTooLong 414 "target_too_long" "The request target is longer than the limit.",
    VersionMissing 400 "version_missing" "The request line has no version.",
    VersionMalformed 400 "version_malformed" "The version is not written as HTTP/ and two digits.",
    VersionUnsupported 505 "version_unsupported" "The version is neither HTTP/1.0 nor HTTP/1.1.",
    // Lines and fields.
    BareCr 400 "bare_cr" "A carriage return without a line feed.",
    BareLf 400 "bare_lf" "A line feed without a carriage return.",
    Nul 400 "nul" "A NUL byte.",
    ControlByte 400 "control_byte" "A control byte in a field value.",
    ObsFold 400 "obs_fold" "A line that begins with white space, which once continued the line before.",
    FieldNameEmpty 400 "field_name_empty" "A field without a name.",
    FieldNameByte 400 "field_name_byte" "A field name has a byte that no name may have.",
    FieldNameCase 400 "field_name_case" "A field name of HTTP/2 has an upper-case letter.",
    FieldValueSpace 400 "field_value_space" "A field value of HTTP/2 begins or ends with white space.",
    SpaceBeforeColon 400 "space_before_colon" "White space between a field name and its colon.",
    ColonMissing 400 "colon_missing" "A line of the head has no colon.",
    FieldsTooMany 431 "fields_too_many" "More header fields than the limit.",
    HeadTooLarge 431 "head_too_large" "The head is larger than the limit.",
    // Where the request goes.
    HostMissing 400 "host_missing" "No Host.",
    HostRepeated 400 "host_repeated" "More than one Host.",
    HostInvalid 400 "host_invalid" "The host is empty or no host name, IPv4 or bracketed IPv6 address with an optional port.",
    HostUserinfo 400 "host_userinfo" "The host has user information.",
    HostDiffers 400 "host_differs" "The authority of the request target is not that of Host.",
    PseudoFields 400 "pseudo_fields" "Pseudo-fields of HTTP/2 are missing, empty, or not as the method needs them.",
    // Where the message ends.
    LengthInvalid 400 "length_invalid" "Content-Length is no decimal number, or too large a one.",
    LengthRepeated 400 "length_repeated" "More than one Content-Length.",
    LengthWithEncoding 400 "length_with_encoding" "Content-Length together with Transfer-Encoding.",
    LengthWithoutBody 400 "length_without_body" "A length or encoding of a body in a message that has none.",
    EncodingUnknown 400 "encoding_unknown" "Transfer-Encoding is anything but chunked.",
    EncodingRepeated 400 "encoding_repeated" "More than one Transfer-Encoding, or chunked more than once.",
    EncodingVersion 400 "encoding_version" "Transfer-Encoding in HTTP/1.0 or HTTP/2.",
    BodyTooLarge 413 "body_too_large" "The body is larger than the limit.",
    // The connection.
    ConnectionInvalid 400 "connection_invalid" "Connection is no list of tokens, or a very long one.",
    ConnectionNominates 400 "connection_nominates" "Connection names a field that speaks of more than this connection.",
    ConnectionField 400 "connection_field" "A field that HTTP/2 forbids: Connection, Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade, or TE other than trailers.",
    Expectation 417 "expectation" "Expect is anything but 100-continue.",
    // Chunks.
    ChunkSize 400 "chunk_size" "A chunk size that is no hexadecimal number, or has too many digits.",
    ChunkExtension 400 "chunk_extension" "A chunk extension has a control byte, or is longer than the limit.",
    ChunkEnd 400 "chunk_end" "A chunk, or its size, does not end with a carriage return and a line feed.",
    TrailerTooLarge 400 "trailer_too_large" "The trailer section is larger than the limit, or has too many fields.",
    TrailerField 400 "trailer_field" "A trailer that says where the message goes or ends.",
    // Answers of an upstream.
    StatusLine 400 "status_line" "The status line is not as HTTP/1 writes it.",
    StatusCode 400 "status_code" "The status is not between 100 and 599.",
    UpgradeUnasked 400 "upgrade_unasked" "A switch of protocols that was not asked for.",
}

impl std::fmt::Display for Reject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.sentence())
    }
}

impl std::error::Error for Reject {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_labels() {
        let names: BTreeSet<&str> = Reject::ALL.iter().map(|reject| reject.name()).collect();
        assert_eq!(names.len(), Reject::ALL.len());
        for (at, reject) in Reject::ALL.iter().enumerate() {
            assert_eq!(reject.index(), at);
            assert!(
                reject
                    .name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
            );
            assert!(reject.sentence().ends_with('.'));
        }
    }
}
