//! Runs over tables in memory, on a lake in a temporary folder.

mod merge;
mod support;
