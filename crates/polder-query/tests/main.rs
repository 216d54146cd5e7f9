//! The tests of this crate's public surface, in one binary.

mod engine;
