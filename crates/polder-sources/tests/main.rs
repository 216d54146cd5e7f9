//! The sources against real servers and files.

mod files;
mod memory;
mod mongodb;
mod postgres;
mod reading;
