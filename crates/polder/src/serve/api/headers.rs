//! Headers in the description: of which operations the requests and answers have them.

use serde_json::{Value, json};

use super::gate::{KEY_CHARS_MAX, changes};

const ORG: &str = "/v1/orgs/{org}";
const TABLE: &str = "/v1/orgs/{org}/tables/{table}";
const UNDO: &str = "/v1/orgs/{org}/tables/{table}/undo";
const TEMPLATE: &str = "/v1/templates/{template}";
const RUN_CANCEL: &str = "/v1/orgs/{org}/runs/{run}/cancel";
const RUN_RETRY: &str = "/v1/orgs/{org}/runs/{run}/retry";
const ORG_PAUSE: &str = "/v1/orgs/{org}/pause";
const ORG_RESUME: &str = "/v1/orgs/{org}/resume";
const TABLE_PAUSE: &str = "/v1/orgs/{org}/tables/{table}/pause";
const TABLE_RESUME: &str = "/v1/orgs/{org}/tables/{table}/resume";
const SOURCE_PAUSE: &str = "/v1/sources/{source}/pause";
const SOURCE_RESUME: &str = "/v1/sources/{source}/resume";
const KEY: &str = "/v1/keys/{key}";

/// Whose answers have an entity tag.
const TAGGED: [(&str, &str); 25] = [
    ("post", "/v1/orgs"),
    ("get", ORG),
    ("patch", ORG),
    ("delete", ORG),
    ("post", "/v1/orgs/{org}/tables"),
    ("get", TABLE),
    ("patch", TABLE),
    ("post", UNDO),
    ("get", "/v1/orgs/{org}/tables/{table}/versions"),
    ("get", TEMPLATE),
    ("put", TEMPLATE),
    ("patch", TEMPLATE),
    ("get", "/v1/orgs/{org}/runs/{run}"),
    ("post", RUN_CANCEL),
    ("post", RUN_RETRY),
    ("get", "/v1/orgs/{org}/schedules"),
    ("post", ORG_PAUSE),
    ("post", ORG_RESUME),
    ("post", TABLE_PAUSE),
    ("post", TABLE_RESUME),
    ("get", "/v1/sources/{source}"),
    ("post", SOURCE_PAUSE),
    ("post", SOURCE_RESUME),
    ("get", KEY),
    ("delete", KEY),
];
/// Which look at `If-Match`.
const CONDITIONAL: [(&str, &str); 19] = [
    ("patch", ORG),
    ("delete", ORG),
    ("patch", TABLE),
    ("delete", TABLE),
    ("post", "/v1/orgs/{org}/tables/{table}/rollback"),
    ("post", TABLE_PAUSE),
    ("post", TABLE_RESUME),
    ("post", UNDO),
    ("put", TEMPLATE),
    ("patch", TEMPLATE),
    ("delete", TEMPLATE),
    ("post", RUN_CANCEL),
    ("post", RUN_RETRY),
    ("post", ORG_PAUSE),
    ("post", ORG_RESUME),
    ("post", SOURCE_PAUSE),
    ("post", SOURCE_RESUME),
    ("delete", KEY),
    ("post", "/v1/keys/{key}/rotate"),
];

/// Of answers that say what went wrong.
pub(super) fn of_problems() -> Value {
    json!({
        "Retry-After": {
            "description": "After how many seconds to come back: of 429 and 503.",
            "schema": { "type": "integer", "minimum": 1 },
        },
    })
}

/// Adds them to every operation.
pub(super) fn describe(document: &mut Value) {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, item) in paths {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let this = (method.as_str(), path.as_str());
            for parameter in parameters(this) {
                add(operation, parameter);
            }
            if TAGGED.contains(&this) {
                tag(operation);
            }
        }
    }
}

fn parameters(operation: (&str, &str)) -> Vec<Value> {
    let header = |name: &str, description: &str, schema: Value| {
        json!({
            "name": name,
            "in": "header",
            "required": false,
            "description": description,
            "schema": schema,
        })
    };
    let text = json!({ "type": "string" });
    let mut found = Vec::new();
    if CONDITIONAL.contains(&operation) {
        let description =
            "Only if it is still as it was read: the `ETag` of that answer. 412 otherwise.";
        found.push(header("If-Match", description, text.clone()));
    }
    if operation == ("put", TEMPLATE) {
        let description = "`*`: only if there is none yet. 412 otherwise.";
        found.push(header("If-None-Match", description, text.clone()));
    }
    let (method, path) = operation;
    if changes(&method.to_uppercase(), path) {
        let description = "The first answer again to whoever repeats the request, for 24 hours.";
        let key = json!({ "type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX });
        found.push(header("Idempotency-Key", description, key));
        found.push(header("Polder-Reason", "Why, for the history.", text));
    }
    found
}

fn add(operation: &mut Value, parameter: Value) {
    let parameters = &mut operation["parameters"];
    if parameters.is_null() {
        *parameters = json!([]);
    }
    if let Some(parameters) = parameters.as_array_mut() {
        parameters.push(parameter);
    }
}

/// Every answer of the operation that is no problem.
fn tag(operation: &mut Value) {
    let responses = operation["responses"].as_object_mut().into_iter().flatten();
    for (_, response) in responses {
        response["headers"]["ETag"] = json!({
            "description": "Of the state that is shown; `If-Match` takes it.",
            "schema": { "type": "string" },
        });
    }
}
