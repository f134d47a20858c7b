//! Which prompt goes next: the window of those that wait, and what is known of how long they will take.
//! Knows lengths and tokens, nothing of the engine.

mod lengths;
mod window;

pub use lengths::Lengths;
pub use window::{Order, Window};
