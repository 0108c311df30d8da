//! The ids of a conversation from turn to turn: what the model was given and what it said stay as they were, so that the engine
//! has to read only what is new.
//!
//! Reading an answer's text again can give other ids than those that were generated. So the text and the ids so far are kept
//! together with the places where both can be cut: behind each prompt and each answer. A new prompt takes the ids up to the last
//! place up to which its text is the same, and the tokenizer's for the rest. Where the template writes an earlier answer
//! differently, without its reasoning for instance, that place is before the answer.

use mlx_lm::{Result, Tokenizer};

/// Text, its ids, and the lengths of both at each place where they can be cut.
#[derive(Default)]
pub struct Transcript {
    text: String,
    ids: Vec<u32>,
    cuts: Vec<(usize, usize)>,
}

impl Transcript {
    /// The ids of the prompt `text`, which is the transcript from now on.
    pub fn prompt(&mut self, text: String, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(&text, false)?;
        while let Some(&(bytes, n)) = self.cuts.last() {
            if text.as_bytes().starts_with(&self.text.as_bytes()[..bytes]) {
                let before = tokenizer.encode(&text[..bytes], false)?;
                // Otherwise a token spans this place, as where a word goes on.
                if ids.starts_with(&before) {
                    ids.splice(..before.len(), self.ids[..n].iter().copied());
                    break;
                }
            }
            self.cuts.pop();
        }
        self.cuts.push((text.len(), ids.len()));
        (self.text, self.ids) = (text, ids);
        Ok(self.ids.clone())
    }

    /// The model said these ids.
    pub fn answer(&mut self, ids: &[u32], tokenizer: &Tokenizer) -> Result<()> {
        let ids = match ids.split_last() {
            Some((last, said)) if tokenizer.eos_token_ids().contains(last) => said, // the template writes it
            _ => ids,
        };
        let text = tokenizer.decode(ids)?;
        let end = text.trim_end().len();
        let mut detokenizer = tokenizer.detokenizer();
        let mut bytes = 0;
        for (i, &id) in ids.iter().enumerate() {
            bytes += detokenizer.push(id)?.len();
            // Templates may leave out white space behind an answer.
            if bytes == end && bytes < text.len() {
                self.cuts.push((self.text.len() + end, self.ids.len() + i + 1));
                break;
            }
        }
        self.text.push_str(&text);
        self.ids.extend(ids);
        self.cuts.push((self.text.len(), self.ids.len()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mlx_lm::Checkpoint;

    use super::*;

    /// Ids that have this text, one for each character.
    fn spelled(text: &str, tokenizer: &Tokenizer) -> Vec<u32> {
        text.chars().flat_map(|c| tokenizer.encode(c.encode_utf8(&mut [0; 4]), false).unwrap()).collect()
    }

    #[test]
    fn what_was_said_keeps_its_ids_and_the_rest_gets_the_tokenizers() {
        let tokenizer = Tokenizer::load(&Checkpoint::demo().unwrap()).unwrap();
        let (first, answer) = ("<|bos|><|user|>What colour is it?<|end|><|assistant|>", "The sky is blue.");
        let mut transcript = Transcript::default();
        let prompt = transcript.prompt(first.to_owned(), &tokenizer).unwrap();
        assert_eq!(prompt, tokenizer.encode(first, false).unwrap());
        let said = spelled(answer, &tokenizer);
        assert_ne!(said, tokenizer.encode(answer, false).unwrap());
        let end = *tokenizer.eos_token_ids().first().unwrap();
        transcript.answer(&[&said[..], &[end]].concat(), &tokenizer).unwrap();

        let kept = [&prompt[..], &said].concat();
        let next = "<|end|><|user|>And the sea?<|end|><|assistant|>";
        let ids = |text: &str, transcript: &mut Transcript| transcript.prompt(text.to_owned(), &tokenizer).unwrap();
        let second = ids(&format!("{first}{answer}{next}"), &mut transcript);
        assert_eq!(second, [&kept[..], &tokenizer.encode(next, false).unwrap()].concat());
        // Taken back, and asked otherwise.
        let other = "<|end|><|user|>And the grass?<|end|><|assistant|>";
        assert!(ids(&format!("{first}{answer}{other}"), &mut transcript).starts_with(&kept));
        // The template leaves out the white space behind an answer.
        let mut trimmed = Transcript::default();
        ids(first, &mut trimmed);
        trimmed.answer(&[&said[..], &spelled(" \n", &tokenizer)].concat(), &tokenizer).unwrap();
        assert_eq!(ids(&format!("{first}{answer}{next}"), &mut trimmed), second);
        // A word goes on where the answer was cut.
        let joined = format!("{first}{answer}ness{next}");
        assert_eq!(
            tokenizer.decode(&ids(&joined, &mut transcript)).unwrap(),
            tokenizer.decode(&tokenizer.encode(&joined, false).unwrap()).unwrap()
        );
        // The template writes another answer: it is the tokenizer's, and what was before stays.
        let rewritten = format!("{first}The sky.{next}");
        assert_eq!(ids(&rewritten, &mut transcript), tokenizer.encode(&rewritten, false).unwrap());
        let elsewhere = "<|bos|><|user|>Why?<|end|><|assistant|>";
        assert_eq!(ids(elsewhere, &mut transcript), tokenizer.encode(elsewhere, false).unwrap());
    }
}
