//! Member names of a document type, found by position first and by name second.
//!
//! Documents of one collection mostly have their members in one order, so the member after the last
//! one found is tried before the map.

use std::collections::HashMap;

#[derive(Default)]
pub(crate) struct Names {
    names: Vec<Box<[u8]>>,
    index: HashMap<Box<[u8]>, usize>,
}

impl Names {
    /// The member's number; `hint` is the number expected.
    pub(crate) fn find(&self, key: &[u8], hint: usize) -> Option<usize> {
        match self.names.get(hint) {
            Some(name) if **name == *key => Some(hint),
            _ => self.index.get(key).copied(),
        }
    }

    /// Adds a name that is not there yet and returns its number.
    pub(crate) fn add(&mut self, key: &[u8]) -> usize {
        let number = self.names.len();
        self.names.push(key.into());
        self.index.insert(key.into(), number);
        number
    }
}
