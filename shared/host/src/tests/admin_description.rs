//! The description of the admin port, without any database.

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;

use super::admin_client::{admin_port, as_operator, send_request, with_scope};
use super::*;
use crate::http::{books, openapi};
use crate::service::Service;

/// What every service has on its admin port. The pool connects at the first statement, which these tests do not reach.
fn chassis_routes() -> OpenApiRouter {
    let nowhere = || Secret::from("postgres://till@nowhere/till".to_owned());
    let config = migrate::tests::config(nowhere(), nowhere());
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let service = Service::new("till", config, migrate::tests::migrations(1), metrics).unwrap();
    service.consumer(Handlers::<Tills>::new()).admin().merge(service.republish([]))
}

/// The methods and paths that the port of a service describes.
async fn described(admin: &Router) -> Vec<(String, String)> {
    let document = admin_client::get(admin, "/openapi.json").await;
    assert_eq!(document["info"]["title"], "till: admin port");
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| {
            let security = json!([{ "token": ["operator"] }]);
            assert_eq!(operation["security"], security, "{method} {path}");
            (method.to_uppercase(), path.replace("{dead_letter_id}", "7"))
        })
    });
    operations.collect()
}

#[tokio::test]
async fn the_committed_openapi_document_of_the_admin_port_matches_the_code() {
    let mut routes = chassis_routes();
    routes.get_openapi_mut().merge(books::routes().into_openapi());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/admin-openapi.json");
    testing::compare_document(file, &openapi::admin_document("service", &routes));
}

#[tokio::test]
async fn every_operation_needs_the_scope_that_its_description_lists() {
    let operations = described(&as_operator(chassis_routes())).await;
    assert!(operations.contains(&("GET".into(), "/books".into())), "{operations:?}");
    assert!(operations.len() >= 11, "{operations:?}");
    let other = with_scope(chassis_routes(), "support:read");
    let unknown = testing::router_without_token(admin_port(chassis_routes()));
    for (method, path) in operations.iter().chain([&("GET".into(), "/openapi.json".into())]) {
        assert_eq!(send_request(&other, method, path, Value::Null).await.0, 403, "{method} {path}");
        assert_eq!(
            send_request(&unknown, method, path, Value::Null).await.0,
            401,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn a_route_without_a_description_answers_no_operator() {
    let hidden = Router::new().route("/hidden", get(async || "done"));
    let admin = as_operator(chassis_routes().merge(hidden.into()));
    assert_eq!(send_request(&admin, "GET", "/hidden", Value::Null).await.0, 500);
    assert_eq!(send_request(&admin, "GET", "/missing", Value::Null).await.0, 404);
    assert_eq!(send_request(&admin, "DELETE", "/consumer", Value::Null).await.0, 405);
}
