//! The resource of the traces: which instance of which service made a span.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

/// The attributes by which OpenTelemetry's conventions name an instance of a service. A trace store tells the
/// processes of a trace apart by the instance, so each process that was given no name draws an id. What
/// `OTEL_RESOURCE_ATTRIBUTES` sets besides, such as the environment, stays.
pub(super) fn resource(
    service: &'static str,
    version: &'static str,
    instance: Option<&str>,
) -> Resource {
    let instance = instance.map_or_else(random_uuid, str::to_owned);
    let own =
        [KeyValue::new("service.version", version), KeyValue::new("service.instance.id", instance)];
    Resource::builder().with_service_name(service).with_attributes(own).build()
}

/// A UUID of version 4, as OpenTelemetry recommends it.
fn random_uuid() -> String {
    let bytes = RandomIdGenerator::default().new_trace_id().to_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use opentelemetry::Key;
    use uuid::Uuid;

    use super::*;

    fn instance_id(name: Option<&str>) -> String {
        let id = resource("till", "1.2.3", name).get(&Key::new("service.instance.id"));
        id.unwrap().to_string()
    }

    #[test]
    fn each_process_has_an_instance_id_of_its_own_unless_it_was_given_a_name() {
        let [first, second] = [(), ()].map(|()| instance_id(None).parse::<Uuid>().unwrap());
        assert_eq!((first.get_version_num(), second.get_version_num()), (4, 4));
        assert_ne!(first, second);
        assert_eq!(instance_id(Some("till-7d4f")), "till-7d4f");
    }
}
