//! Needs a server that speaks MongoDB's protocol and lets anybody write: `POLDER_TEST_MONGO_URL`.

mod answers;
mod conformance;
mod cursors;
mod errors;
mod orgs;
mod parts;
mod policies;
mod shapes;
mod snapshots;
mod support;
mod swap;
mod types;
