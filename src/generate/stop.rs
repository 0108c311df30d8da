//! Stop strings in a stream: text before one passes, nothing of it, even when it straddles pieces.

use std::collections::HashMap;

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::noncontiguous::NFA;

/// Watches a text that comes in pieces. What a piece costs does not depend on how many stop strings there are.
#[derive(Debug)]
pub struct StopStrings {
    automaton: NFA,
    /// Where the automaton is after the text so far.
    state: StateID,
    /// For each state, how many bytes of a stop string lead to it: so many at the end of the text may still become one.
    depths: HashMap<StateID, usize>,
    /// The longest end of the text so far that may still become a stop string.
    held: String,
}

impl StopStrings {
    pub fn new(stop: &[String]) -> Self {
        let stop: Vec<&str> = stop.iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        let automaton = NFA::new(&stop).expect("less than 2 GiB of stop strings");
        let start = start(&automaton);
        let mut depths = HashMap::new();
        for string in stop {
            let mut state = start;
            for (&byte, depth) in string.as_bytes().iter().zip(1..) {
                state = automaton.next_state(Anchored::No, state, byte);
                depths.insert(state, depth);
            }
        }
        StopStrings { automaton, state: start, depths, held: String::new() }
    }

    /// Add a piece. Returns the text that is certain now, and whether a stop string ended it: the first to complete,
    /// and the longest of those that complete together.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        let before = self.held.len();
        self.held.push_str(piece);
        for (&byte, end) in piece.as_bytes().iter().zip(before + 1..) {
            self.state = self.automaton.next_state(Anchored::No, self.state, byte);
            if self.automaton.is_match(self.state) {
                // The whole way to this state is a stop string, or an end of it is.
                let lengths = (0..self.automaton.match_len(self.state))
                    .map(|i| self.automaton.pattern_len(self.automaton.match_pattern(self.state, i)));
                self.held.truncate(end - lengths.max().unwrap_or(0));
                self.state = start(&self.automaton);
                return (std::mem::take(&mut self.held), true);
            }
        }
        let may_become_one = self.depths.get(&self.state).copied().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - may_become_one);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text has ended: what was held back is part of it. Nothing, once a stop string has come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

fn start(automaton: &NFA) -> StateID {
    automaton.start_state(Anchored::No).expect("this kind of automaton searches anywhere")
}

#[cfg(test)]
mod tests {
    use super::StopStrings;
    use proptest::prelude::*;

    /// What passes of `text`, and whether a stop string ended it: everything before the first one to complete.
    fn before_stop<'a>(text: &'a str, stop: &[String]) -> (&'a str, bool) {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let mut starts = ends.filter_map(|end| {
            let completed = stop.iter().filter(|s| !s.is_empty() && text[..end].ends_with(s.as_str()));
            completed.map(|s| end - s.len()).min()
        });
        starts.next().map_or((text, false), |start| (&text[..start], true))
    }

    /// The longest end of `text` that a stop string begins with.
    fn begun<'a>(text: &'a str, stop: &[String]) -> &'a str {
        let ends = text.char_indices().map(|(at, _)| &text[at..]);
        ends.into_iter().find(|end| stop.iter().any(|s| s.starts_with(end))).unwrap_or("")
    }

    /// However a text is cut into pieces, what passes is the text before the first stop string, and only what may still
    /// become one is late.
    fn check(text: &str, cuts: &[usize], stop: &[String]) {
        let mut chars = text.chars();
        let (mut watch, mut so_far, mut passed, mut stopped) =
            (StopStrings::new(stop), String::new(), String::new(), false);
        for &cut in cuts.iter().chain([&usize::MAX]) {
            let piece: String = chars.by_ref().take(cut).collect();
            so_far += &piece;
            let (certain, hit) = watch.push(&piece);
            passed += &certain;
            stopped = hit;
            if hit {
                break;
            }
            assert_eq!(passed.clone() + begun(&so_far, stop), so_far);
        }
        passed += &watch.finish();
        assert_eq!((passed.as_str(), stopped), before_stop(text, stop));
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

        /// Many that share beginnings, middles and ends, too long to complete before others have begun within them.
        #[test]
        fn nor_how_many_there_are(
            text in "[ab\u{e9}]{0,80}",
            cuts in prop::collection::vec(0usize..4, 0..40),
            stop in prop::collection::vec("[ab\u{e9}]{3,12}", 0..80),
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
