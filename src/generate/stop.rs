//! Stop strings in a stream: text before one passes, nothing of it, even when it straddles pieces.

/// Watches a text that comes in pieces.
#[derive(Debug)]
pub struct StopStrings {
    stop: Vec<String>,
    /// The longest end of the text so far that may still become a stop string.
    held: String,
}

impl StopStrings {
    pub fn new(stop: &[String]) -> Self {
        let stop = stop.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopStrings { stop, held: String::new() }
    }

    /// Add a piece. Returns the text that is certain now, and whether a stop string ended it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stop.iter().filter_map(|s| self.held.find(s)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins_stop = |&at: &usize| self.stop.iter().any(|s| s.starts_with(&self.held[at..]));
        let at = self.held.char_indices().map(|(i, _)| i).find(begins_stop).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text has ended: what was held back is part of it. Nothing, once a stop string has come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::StopStrings;
    use proptest::prelude::*;

    /// However a text is cut into pieces, what passes is the text before the first stop string.
    fn check(text: &str, cuts: &[usize], stop: &[String]) {
        let expected = stop.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min();
        let mut chars: Vec<char> = text.chars().collect();
        let (mut watch, mut passed, mut stopped) = (StopStrings::new(stop), String::new(), false);
        for cut in cuts.iter().chain([&usize::MAX]) {
            let piece: String = chars.drain(..(*cut).min(chars.len())).collect();
            let (certain, hit) = watch.push(&piece);
            passed.push_str(&certain);
            stopped = hit;
            if hit {
                break;
            }
        }
        if !stopped {
            passed.push_str(&watch.finish());
        }
        assert_eq!(stopped, expected.is_some());
        // A longer stop string may begin before the one that completes first; then the earlier end wins.
        match expected {
            None => assert_eq!(passed, text),
            Some(_) => {
                assert!(text.starts_with(&passed));
                assert!(stop.iter().any(|s| !s.is_empty() && text[passed.len()..].starts_with(s.as_str())));
                assert!(stop.iter().all(|s| s.is_empty() || !passed.contains(s.as_str())));
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[ab\u{e9}]{0,24}",
            cuts in prop::collection::vec(0usize..4, 0..16),
            stop in prop::collection::vec("[ab\u{e9}]{0,4}", 0..3),
        ) {
            check(&text, &cuts, &stop);
        }
    }

    #[test]
    fn held_text_is_the_shortest_possible() {
        let mut watch = StopStrings::new(&["END".into()]);
        assert_eq!(watch.push("the E"), ("the ".into(), false));
        assert_eq!(watch.push("N"), ("".into(), false));
        assert_eq!(watch.push("d. EN"), ("ENd. ".into(), false));
        assert_eq!(watch.push("D and more"), ("".into(), true));
    }
}
