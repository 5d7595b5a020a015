//! The engine as a whole: on a simulated disk, driven by hand, and on a real one with its threads.

mod basic;
mod faults;
mod model;
mod pressure;
mod real;
mod rewrite;
