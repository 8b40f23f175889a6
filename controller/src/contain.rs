//! Containment at the Kubernetes API: what is observed, what is planned, what each step sends.
//!
//! Second hop of the data path. Everything that decides is a pure function from observed objects
//! to [`ApiCall`]s; a dry run prints those calls and a real run sends the very same ones. A step
//! that meets a conflict observes again and asks the same function, so a step whose effect is
//! already there sends nothing: that is what makes every step repeatable after a crash.
//!
//! [`ApiCall`]: crate::resources::ApiCall

pub mod credentials;
pub mod evict;
pub mod facts;
pub mod guard;
pub mod isolation;
pub mod node;
pub mod observe;
pub mod owner;
pub mod plan;
pub mod plugin;
pub mod pod;
pub mod policy;
pub mod proof;
pub mod protect;
pub mod recorded;
pub mod refusal;
pub mod selector;
pub mod settings;
pub mod standstill;
