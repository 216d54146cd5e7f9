//! The engine against lakes on local disk, written through `polder-lake`: no server needed.

mod bounded;
mod evolution;
mod hostile;
mod isolation;
mod lake;
mod limits;
mod parameters;
mod pruning;
mod queries;
mod reach;
mod shared;
mod time_travel;
mod types;
