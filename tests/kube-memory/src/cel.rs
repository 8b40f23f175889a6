//! CEL on JSON: the rules of custom resources and of admission policies. What can't be evaluated here is refused
//! when it is written, so that no rule is ever silently ignored.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::objects::{Key, Map};
use cel::{Context, Env, Program};
use serde_json::Value;

/// Functions and macros beyond operators that are evaluated here. Those that Kubernetes adds (`quantity`, `isIP`,
/// `url`, …) and times are not among them.
const FUNCTIONS: [&str; 21] = [
    "size",
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "dyn",
    "type",
    "min",
    "max",
    "orValue",
    "or",
    "value",
    "hasValue",
    "optional.of",
    "optional.none",
];

/// Names of types, which look like variables.
const TYPES: [&str; 9] = [
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "list",
    "map",
    "null_type",
];

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Parsing takes longer than everything else, and the same few rules come again with every write.
static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);

/// Whether an expression can be evaluated with these variables; if not, why, in the words of a real server.
pub(crate) fn check(text: &str, variables: &[&str]) -> Result<(), String> {
    let program = compile(text)?;
    let mut free = Vec::new();
    free_names(program.expression(), &mut Vec::new(), &mut free);
    if let Some(name) = free
        .iter()
        .find(|name| !variables.contains(name) && !TYPES.contains(name))
    {
        return Err(format!(
            "undeclared reference to '{name}' (in container '')"
        ));
    }
    let references = program.references();
    let beyond = references.functions().into_iter().find(|name| {
        let operator = !name.starts_with(|letter: char| letter.is_ascii_alphabetic());
        !operator && !FUNCTIONS.contains(name)
    });
    match beyond {
        Some(name) => Err(format!("'{name}' is not supported by this server")),
        None => Ok(()),
    }
}

/// Whether an expression names a variable.
pub(crate) fn mentions(text: &str, variable: &str) -> bool {
    compile(text).is_ok_and(|program| program.references().has_variable(variable))
}

/// The value of an expression; an error is one of evaluation, as of a field that isn't there.
pub(crate) fn evaluate(text: &str, variables: &[(&str, &Value)]) -> Result<Value, String> {
    let program = compile(text)?;
    let mut context = Context::with_env(ENVIRONMENT.clone());
    for (name, value) in variables {
        context.add_variable_from_value(*name, to_cel(value));
    }
    let value = program
        .execute(&context)
        .map_err(|error| error.to_string())?;
    value.json().map_err(|error| error.to_string())
}

fn compile(text: &str) -> Result<Arc<Program>, String> {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = compiled.get(text) {
        return Ok(program.clone());
    }
    let program = ENVIRONMENT
        .compile(text)
        .map_err(|errors| format!("Syntax error: {errors}"))?;
    let program = Arc::new(program);
    compiled.insert(text.to_owned(), program.clone());
    Ok(program)
}

/// All whole numbers are `int`, as in the API's schemas.
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(truth) => cel::Value::Bool(*truth),
        Value::Number(number) => number.as_i64().map_or_else(
            || cel::Value::Float(number.as_f64().unwrap_or_default()),
            cel::Value::Int,
        ),
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => {
            cel::Value::List(Arc::new(items.iter().map(to_cel).collect::<Vec<_>>()))
        }
        Value::Object(fields) => cel::Value::Map(Map {
            map: Arc::new(
                fields
                    .iter()
                    .map(|(key, value)| (Key::String(Arc::new(key.clone())), to_cel(value)))
                    .collect(),
            ),
        }),
    }
}

/// Names that no `all`, `exists`, `map` or `filter` around them binds.
fn free_names<'a>(expression: &'a IdedExpr, bound: &mut Vec<&'a str>, free: &mut Vec<&'a str>) {
    match &expression.expr {
        Expr::Ident(name) => {
            if !name.starts_with('@') && !bound.contains(&name.as_str()) {
                free.push(name);
            }
        }
        Expr::Call(call) => {
            // `optional.of(x)` is a call on what looks like a variable.
            let target = call
                .target
                .iter()
                .filter(|target| !matches!(&target.expr, Expr::Ident(name) if name == "optional"));
            for part in target.map(AsRef::as_ref).chain(&call.args) {
                free_names(part, bound, free);
            }
        }
        Expr::Comprehension(all) => {
            free_names(&all.iter_range, bound, free);
            free_names(&all.accu_init, bound, free);
            let outer = bound.len();
            bound.push(&all.iter_var);
            bound.extend(all.iter_var2.as_deref());
            bound.push(&all.accu_var);
            for part in [&all.loop_cond, &all.loop_step, &all.result] {
                free_names(part, bound, free);
            }
            bound.truncate(outer);
        }
        Expr::List(list) => {
            for element in &list.elements {
                free_names(element, bound, free);
            }
        }
        Expr::Select(select) => free_names(&select.operand, bound, free),
        Expr::Map(map) => entries(map.entries.iter().map(|entry| &entry.expr), bound, free),
        Expr::Struct(of) => entries(of.entries.iter().map(|entry| &entry.expr), bound, free),
        Expr::Unspecified | Expr::Literal(_) => {}
    }
}

fn entries<'a>(
    entries: impl Iterator<Item = &'a EntryExpr>,
    bound: &mut Vec<&'a str>,
    free: &mut Vec<&'a str>,
) {
    for entry in entries {
        match entry {
            EntryExpr::StructField(field) => free_names(&field.value, bound, free),
            EntryExpr::MapEntry(entry) => {
                free_names(&entry.key, bound, free);
                free_names(&entry.value, bound, free);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_are_evaluated_as_the_api_does() {
        let object = json!({"a": "x", "n": 3, "l": ["p"], "labels": {"k": "v"}});
        let yes = [
            "object.n + 1 == 4",
            "!has(object.b) || object.b > 1",
            "object.a in ['x', 'y'] && size(object.l) == 1",
            "'k' in object.labels && object.labels['k'] == 'v'",
            "object.labels.all(k, k == 'k')",
            "object.?nosuch.?deeper.orValue('d') == 'd'",
            "object.nosuch == 1 || true",
            "old == null",
        ];
        for text in yes {
            assert_eq!(check(text, &["object", "old"]), Ok(()), "{text}");
            let value = evaluate(text, &[("object", &object), ("old", &Value::Null)]);
            assert_eq!(value, Ok(json!(true)), "{text}");
        }
        assert!(evaluate("object.nosuch == 1", &[("object", &object)]).is_err());
    }

    #[test]
    fn what_cannot_be_evaluated_is_refused_when_it_is_written() {
        for text in [
            "foo",
            "object.l.all(x, y > 1)",
            "quantity(object.a) == 1",
            "duration(object.a) > duration('1s')",
            "object.a ==",
        ] {
            assert!(check(text, &["object"]).is_err(), "{text}");
        }
    }
}
