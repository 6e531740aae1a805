//! Names and texts of files, as messages have them.

/// As much of somebody's text as messages repeat, and are compared with names.
pub(crate) const MOST_CHARS: usize = 64;

/// Names as a sentence has them.
pub(crate) fn listed(names: &[&str], before_last: &str) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} {before_last} {last}", all.join(", ")),
        _ => names.join(""),
    }
}

/// The beginning of a text from a file, in one line.
pub(crate) fn shortened(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MOST_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MOST_CHARS).is_some() {
        shown += "...";
    }
    shown
}
