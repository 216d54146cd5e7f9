//! `polder validate` against a real PostgreSQL, a real MongoDB and files: what was planted is found and rightly named,
//! and of a right table nothing is said.

mod bounds;
mod damage;
mod files;
mod mongodb;
mod objects;
mod power;
mod proof;
mod quiet;
mod returning;
mod unchanged;
