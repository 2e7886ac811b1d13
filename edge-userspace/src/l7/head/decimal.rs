//! Decimal numbers as text, written without allocating.

/// Appends a number.
pub fn write(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole() {
        for n in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            write(&mut out, n);
            assert_eq!(out, n.to_string().as_bytes());
        }
    }
}
