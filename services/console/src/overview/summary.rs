//! What is wrong, in sentences: the one region of the overview that a screen reader speaks when it changes. The others
//! change each second.

use maud::{Markup, html};

use crate::metrics::snapshot::{InstanceState, Readiness, ServiceState, Snapshot};

pub fn render(snapshot: &Snapshot) -> Markup {
    let found: Vec<String> = snapshot.services.iter().flat_map(complaints).collect();
    let instances = snapshot.services.iter().map(|service| service.instances.len()).sum::<usize>();
    html! {
        @if !found.is_empty() {
            ul { @for complaint in &found { li { (complaint) } } }
        } @else if instances > 0 {
            p { "All " (instances) " instances are ready." }
        }
    }
}

fn complaints(service: &ServiceState) -> Vec<String> {
    let name = &service.name;
    let is_ready = |instance: &&InstanceState| instance.readiness == Readiness::Ready;
    let ready = service.instances.iter().filter(is_ready).count();
    let mut found = Vec::new();
    if ready == 0 {
        found.push(format!("No instance of {name} is ready."));
    } else if ready < service.instances.len() {
        let others = service.instances.iter().filter(|it| !is_ready(it));
        let names: Vec<&str> = others.map(|instance| &*instance.name).collect();
        found.push(format!("{} is not ready; {ready} of {name} are.", names.join(", ")));
    }
    if service.largest("consumer_paused").is_some_and(|paused| paused > 0.0) {
        found.push(format!("The consumer of {name} is paused."));
    }
    if service.largest("dead_letters_waiting").is_some_and(|waiting| waiting > 0.0) {
        found.push(format!("Dead letters of {name} wait for an operator."));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition::Samples;

    fn service(readiness: &[Readiness], metrics: &str) -> ServiceState {
        let instances = readiness.iter().enumerate().map(|(nth, readiness)| InstanceState {
            name: format!("stock-{nth}"),
            address: String::new(),
            readiness: readiness.clone(),
            samples: Samples::parse(metrics, |_| true),
        });
        ServiceState { name: "stock".to_string(), instances: instances.collect() }
    }

    #[test]
    fn each_complaint_is_a_sentence_and_does_not_change_by_itself() {
        let down = Readiness::Down("refused".to_string());
        let healthy = service(&[Readiness::Ready], "dead_letters_waiting 0\nconsumer_paused 0\n");
        assert_eq!(complaints(&healthy), Vec::<String>::new());
        assert_eq!(
            complaints(&service(std::slice::from_ref(&down), "")),
            ["No instance of stock is ready."]
        );
        let half =
            service(&[down, Readiness::Ready], "dead_letters_waiting 3\nconsumer_paused 1\n");
        let expected = [
            "stock-0 is not ready; 1 of stock are.",
            "The consumer of stock is paused.",
            "Dead letters of stock wait for an operator.",
        ];
        assert_eq!(complaints(&half), expected);
        let more = service(&[Readiness::Ready], "dead_letters_waiting 4\n");
        assert_eq!(complaints(&more), [expected[2]]);
    }
}
