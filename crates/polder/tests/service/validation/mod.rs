//! `polder validate` against a real PostgreSQL: what was planted is found and rightly named, and of a
//! right table nothing is said.

mod damage;
mod files;
mod power;
mod proof;
mod quiet;
mod returning;
