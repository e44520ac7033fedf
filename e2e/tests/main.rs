//! What is proved on the native stack.

mod launcher;
