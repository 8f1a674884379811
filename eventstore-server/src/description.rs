//! The OpenAPI description. That of a server of one store is a file; that of a server of many stores is derived from
//! it.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// For a server of one store.
pub(crate) const ONE: &[u8] = include_bytes!("openapi.json");

/// The resources of the server, which exist once, regardless of the number of stores.
const OF_SERVER: [&str; 4] = ["/health", "/ready", "/metrics", "/openapi.json"];

/// For a server of many stores.
pub(crate) fn of_many() -> Vec<u8> {
    static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        // It is valid JSON, as the tests check.
        let mut description: Value = serde_json::from_slice(ONE).unwrap_or_default();
        make_many(&mut description);
        serde_json::to_vec_pretty(&description).unwrap_or_default()
    });
    TEXT.clone()
}

fn make_many(description: &mut Value) {
    description["info"]["description"] =
        "The resources of the server, and below /stores/{store} those of each store. Every error is application/problem+json."
            .into();
    let name = json!({
        "name": "store", "in": "path", "required": true,
        "description": "The name of a store. GET /stores lists those that the token may read.",
        "schema": { "type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,99}$" },
    });
    description["components"]["parameters"]["store"] = name;
    let mut paths = Map::new();
    if let Some(Value::Object(of_one)) = description.get_mut("paths").map(Value::take) {
        for (path, mut resource) in of_one {
            if OF_SERVER.contains(&path.as_str()) {
                paths.insert(path, resource);
                continue;
            }
            let mut parameters = vec![json!({ "$ref": "#/components/parameters/store" })];
            if let Value::Array(own) = resource["parameters"].take() {
                parameters.extend(own);
            }
            resource["parameters"] = parameters.into();
            paths.insert(format!("/stores/{{store}}{}", path.trim_end_matches('/')), resource);
        }
    }
    let names = json!({
        "type": "object", "required": ["stores"], "additionalProperties": false,
        "properties": { "stores": { "type": "array", "items": { "type": "string" } } },
    });
    let root = json!({
        "type": "object", "required": ["wire", "server", "stores"], "additionalProperties": false,
        "properties": {
            "wire": { "type": "array", "items": { "type": "integer" } },
            "server": { "type": "string" },
            "stores": { "type": "string" },
        },
    });
    let listed = operation("The stores that the token may read", "getStores", "read", &names);
    paths.insert("/stores".to_owned(), json!({ "get": listed }));
    let mut told = operation("The server", "getServer", "none", &root);
    told["description"] = "Browsers get a page that lists the stores.".into();
    told["responses"]["200"]["content"]["text/html"] = json!({ "schema": { "type": "string" } });
    paths.insert("/".to_owned(), json!({ "get": told }));
    description["paths"] = Value::Object(paths);
}

fn operation(summary: &str, id: &str, right: &str, schema: &Value) -> Value {
    json!({
        "summary": summary, "operationId": id, "tags": ["server"], "x-right": right,
        "parameters": [{ "$ref": "#/components/parameters/timeout" }],
        "responses": {
            "200": { "description": "The answer.", "content": { "application/json": { "schema": schema } } },
            "default": { "$ref": "#/components/responses/Problem" },
        },
    })
}
