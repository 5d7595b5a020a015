//! The protocols that clients speak. A listener translates and limits; it decides nothing.

pub mod accept;
pub mod grpc;
