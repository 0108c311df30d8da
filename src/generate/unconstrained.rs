//! What stands for [`constraint`](super) in a library without the feature `structured`: no grammar can be asked for.

use std::sync::Arc;

use super::grammar::Grammar;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

#[derive(Debug)]
pub(super) struct Compiler;

/// There is none.
pub(super) enum Start {}

#[derive(Debug)]
pub(super) enum Constraint {}

pub(super) struct Accepted {
    pub forced: Vec<u32>,
    pub is_over: bool,
}

impl Compiler {
    pub fn new(_: Arc<Tokenizer>, _: i32) -> Self {
        Compiler
    }

    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<Start>> {
        let kind = grammar.kind();
        Err(Error::Input(format!("a {kind} needs a program that was built with the feature `structured`")))
    }
}

impl Constraint {
    pub fn begin(start: &Start, _: i32) -> Result<Self> {
        match *start {}
    }

    pub fn mask(&mut self) -> Result<Vec<bool>> {
        match *self {}
    }

    pub fn accept(&mut self, _: u32) -> Result<Accepted> {
        match *self {}
    }
}
