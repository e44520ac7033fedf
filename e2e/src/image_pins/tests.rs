use super::*;

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";
const OLDER: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000002";

fn digests() -> BTreeMap<String, String> {
    let images = ["postgres:17.11", "host:5000/tools/debian:13.7-slim"];
    images.into_iter().map(|image| (image.to_string(), DIGEST.to_string())).collect()
}

#[test]
fn a_digest_is_put_behind_the_tag_and_the_rest_of_the_text_stays() {
    let text = "# image: postgres:17.11\nx:\n  image: postgres:17.11 # for orders\n  - image: \"postgres:17.11\"\n\
                imageName: postgres:17.11\nimage: postgres:18.0\nFROM host:5000/tools/debian:13.7-slim AS last";
    let pinned = format!(
        "# image: postgres:17.11\nx:\n  image: postgres:17.11@{DIGEST} # for orders\n  - image: \
         \"postgres:17.11@{DIGEST}\"\nimageName: postgres:17.11@{DIGEST}\nimage: postgres:18.0\nFROM \
         host:5000/tools/debian:13.7-slim@{DIGEST} AS last"
    );
    assert_eq!(with_digests(text, &digests()), pinned);
}

#[test]
fn a_digest_that_is_there_is_replaced_and_pinning_twice_changes_nothing() {
    let once = with_digests(&format!("image: postgres:17.11@{OLDER}\n"), &digests());
    assert_eq!(once, format!("image: postgres:17.11@{DIGEST}\n"));
    assert_eq!(with_digests(&once, &digests()), once);
}

#[test]
fn images_of_our_own_and_stages_are_not_pulled() {
    let text = "FROM rust:1.95.0-slim AS rust\nFROM rust AS build\nFROM debian:13.7-slim\n\
                image: holdfast/order:${TAG:-local}\nimage: shop:local\n    image: apache/kafka:4.3.1\n";
    assert_eq!(pulled_images(text), ["rust:1.95.0-slim", "debian:13.7-slim", "apache/kafka:4.3.1"]);
}

#[test]
fn a_tag_that_may_be_moved_to_another_version_is_not_exact() {
    let exact =
        ["postgres:17.11", "debian:13.7-slim", "rust:1.95.0-slim-trixie", "host:5000/ui:v1.3.0"];
    for image in exact {
        assert!(is_exact(image), "{image}");
        assert!(is_exact(&format!("{image}@{DIGEST}")), "{image}");
    }
    let floating = [
        "postgres",
        "postgres:17",
        "postgres:latest",
        "debian:trixie-slim",
        "rust:1.95-slim-trixie",
        "host:5000/ui",
        "kafka:4.3",
        "kafka:4.x.1",
        "kafka:4.3.",
    ];
    for image in floating {
        assert!(!is_exact(image), "{image}");
        assert!(
            !is_exact(&format!("{image}@{DIGEST}")),
            "a digest does not say which version: {image}"
        );
    }
}
