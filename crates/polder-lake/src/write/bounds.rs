//! Short bounds of long values (Iceberg's default metrics mode, `truncate(16)`): a lower bound is cut,
//! an upper bound is cut and rounded up. Rounding cuts at characters, and what cannot be rounded up
//! has no upper bound.

/// Characters of a string bound, bytes of a binary one.
const LENGTH: usize = 16;

/// The bound at or below `value`.
pub(super) fn string_below(value: &str) -> String {
    value.chars().take(LENGTH).collect()
}

/// A bound at or above `value`.
pub(super) fn string_above(value: &str) -> Option<String> {
    let cut = string_below(value);
    if cut.len() == value.len() { Some(cut) } else { string_after(&cut) }
}

/// The shortest string that is above every string that begins with `prefix`.
pub(crate) fn string_after(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        if let Some(next) = char_after(last) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

fn char_after(character: char) -> Option<char> {
    match character {
        // The surrogates between these two are no characters.
        '\u{D7FF}' => Some('\u{E000}'),
        other => char::from_u32(other as u32 + 1),
    }
}

pub(super) fn binary_below(value: &[u8]) -> Vec<u8> {
    value[..value.len().min(LENGTH)].to_vec()
}

pub(super) fn binary_above(value: &[u8]) -> Option<Vec<u8>> {
    if value.len() <= LENGTH {
        return Some(value.to_vec());
    }
    let mut cut = binary_below(value);
    while let Some(last) = cut.pop() {
        if last < u8::MAX {
            cut.push(last + 1);
            return Some(cut);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_are_cut_at_characters_and_rounded_up() {
        let cases = [
            ("", Some("")),
            ("short", Some("short")),
            ("sixteen letters!", Some("sixteen letters!")),
            ("sixteen letters! and more", Some("sixteen letters\"")),
            ("ééééééééééééééééé", Some("éééééééééééééééê")),
            ("aaaaaaaaaaaaaaa\u{10FFFF}x", Some("aaaaaaaaaaaaaab")),
            ("aaaaaaaaaaaaaaa\u{D7FF}x", Some("aaaaaaaaaaaaaaa\u{E000}")),
            (&"\u{10FFFF}".repeat(17), None),
        ];
        for (value, expected) in cases {
            assert_eq!(string_above(value).as_deref(), expected, "{value:?}");
        }
        assert_eq!(string_below("ééééééééééééééééé"), "é".repeat(16));
        assert_eq!(binary_above(&[0xFF; 17]), None);
        assert_eq!(binary_above(&[0xFF; 16]), Some(vec![0xFF; 16]));
    }

    proptest! {
        #[test]
        fn every_value_lies_between_its_bounds(value in "\\PC{0,40}|[\u{D7F0}-\u{E00F}]{0,40}|\u{10FFFF}{0,20}[a-c]{0,3}") {
            let (below, above) = (string_below(&value), string_above(&value));
            prop_assert!(below.as_bytes() <= value.as_bytes());
            prop_assert!(below.chars().count() <= LENGTH);
            if let Some(above) = above {
                prop_assert!(above.as_bytes() >= value.as_bytes());
                prop_assert!(above.chars().count() <= LENGTH);
            } else {
                prop_assert!(value.chars().take(LENGTH).all(|c| c == char::MAX));
            }
        }

        #[test]
        fn every_binary_lies_between_its_bounds(value in proptest::collection::vec(prop_oneof![Just(0xFF_u8), any::<u8>()], 0..40)) {
            let below = binary_below(&value);
            prop_assert!(below <= value && below.len() <= LENGTH);
            if let Some(above) = binary_above(&value) {
                prop_assert!(above >= value && above.len() <= LENGTH);
            }
        }

        #[test]
        fn a_prefix_is_below_its_successor(prefix in "\\PC{1,20}", rest in "\\PC{0,20}") {
            let value = format!("{prefix}{rest}");
            if let Some(after) = string_after(&prefix) {
                prop_assert!(after.as_bytes() > value.as_bytes());
            }
        }
    }
}
