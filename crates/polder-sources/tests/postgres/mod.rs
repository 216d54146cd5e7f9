//! The PostgreSQL source against a real server. What needs none is tested beside the code.

mod service;
