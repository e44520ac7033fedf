#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod program; // the commands
mod apply; // creates topics and schemas
mod registry; // the registry's schemas, unless it has lost its data
mod topic_config; // the settings of a topic, by Kafka's names, and the topics as objects of Strimzi
mod users; // the users of Kafka: passwords, rights, quotas
mod kafka_admin; // requests that the client library has no call for
mod cluster_owner; // the stack that a Kafka cluster belongs to
mod versions; // every recorded version of every schema
mod compatibility; // whether two versions can read each other
mod asyncapi; // the AsyncAPI document
pub mod checks;
pub mod samples;
pub mod grants; // the rights that follow from the declaration of topics
mod grant_formats; // the rights as other programs want them

use chassis::event::{Subscriptions, Topic};

use crate::grants::{Feature, Grant};

pub use versions::record_versions;

/// The contracts of one system: its topics, each with its schema, who consumes them, and what its program and its
/// AsyncAPI document are called.
///
/// One value serves the program ([`Contracts::main`]) and the tests ([`checks`]). It belongs to a crate that links the
/// services, since their handlers say what they consume.
pub struct Contracts {
    name: &'static str,
    title: &'static str,
    version: &'static str,
    description: Option<&'static str>,
    schemas_folder: &'static str,
    topics: Vec<&'static Topic>,
    subscriptions: Subscriptions,
    further_grants: &'static [Grant],
    features: &'static [Feature],
    internal_topics: &'static [InternalTopic],
}

/// A topic whose records are no events: it has no schema, one partition, and is in no document.
pub struct InternalTopic {
    /// Its name.
    pub name: &'static str,
    /// Its settings, by Kafka's names.
    pub settings: &'static [(&'static str, &'static str)],
}

impl Contracts {
    /// The contracts of the system with this name, version and topics, such as
    /// [`chassis::event::topics`]. The name is the default of the variable `STACK_NAME`, which keeps two systems from
    /// sharing a Kafka cluster. The version is that of the AsyncAPI document.
    ///
    /// # Panics
    /// If the name has anything but 1 to 63 letters, digits, dashes and underscores.
    pub fn new(
        name: &'static str,
        version: &'static str,
        topics: &[&'static Topic],
        subscriptions: Subscriptions,
    ) -> Contracts {
        assert!(
            cluster_owner::is_stack_name(name),
            "a name has 1 to 63 letters, digits, dashes and underscores"
        );
        Contracts {
            name,
            title: name,
            version,
            description: None,
            schemas_folder: "schemas",
            topics: topics.to_vec(),
            subscriptions,
            further_grants: &[],
            features: &[],
            internal_topics: &[],
        }
    }

    /// The same contracts, with a title of the AsyncAPI document other than the name.
    pub fn title(mut self, title: &'static str) -> Contracts {
        self.title = title;
        self
    }

    /// The same contracts, with a description in the AsyncAPI document, in CommonMark.
    pub fn description(mut self, description: &'static str) -> Contracts {
        self.description = Some(description);
        self
    }

    /// The same contracts, with rights in Kafka beyond those that the topics give: of a stream processor with internal
    /// topics.
    pub fn grants_also(mut self, grants: &'static [Grant]) -> Contracts {
        self.further_grants = grants;
        self
    }

    /// The same contracts, with features that not every installation runs. Their users and rights exist where `apply` is
    /// told that they run.
    pub fn features(mut self, features: &'static [Feature]) -> Contracts {
        self.features = features;
        self
    }

    /// The same contracts, with topics that `apply` creates beside those of the events.
    pub fn creates_also(mut self, topics: &'static [InternalTopic]) -> Contracts {
        self.internal_topics = topics;
        self
    }

    /// The same contracts, with another folder of schemas than `schemas` for the command `record`.
    /// A relative path begins at the working directory.
    pub fn schemas_folder(mut self, folder: &'static str) -> Contracts {
        self.schemas_folder = folder;
        self
    }
}
