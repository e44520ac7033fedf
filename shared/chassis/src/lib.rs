pub mod event;
pub mod avro;
