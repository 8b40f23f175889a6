//! `x-kubernetes-validations`: a subset of CEL, parsed when the definition is created and refused there if it
//! goes beyond: field access, comparisons, `&&`, `||`, `!`, `in`, `? :`, `has()`, `size()`, `startsWith`, `endsWith`,
//! `contains`, `matches`, list and scalar literals.

use regex::Regex;
use serde_json::{Value, json};

use crate::json;
use crate::refusal::FieldError;

#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Literal(Value),
    List(Vec<Expr>),
    /// `self` or `oldSelf`
    Root(bool),
    Field(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    Call(String, Vec<Expr>),
    Not(Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    Choose(Box<Expr>, Box<Expr>, Box<Expr>),
}

/// Whether a rule can be evaluated here; if not, why.
pub(super) fn check_rule(rule: &Value) -> Result<(), String> {
    for field in ["messageExpression", "optionalOldSelf"] {
        if rule.get(field).is_some() {
            return Err(format!("{field} is not supported by this server"));
        }
    }
    parse(json::text(rule, "/rule")).map(drop)
}

/// Evaluates all rules of a schema against a value, and its old value in an update.
pub(super) fn check(
    value: &Value,
    old: Option<&Value>,
    schema: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for rule in json::list(schema, "/x-kubernetes-validations") {
        let text = json::text(rule, "/rule");
        let Ok(expression) = parse(text) else {
            continue;
        };
        // A rule about the old value is one about a change.
        if mentions_old(&expression) && old.is_none() {
            continue;
        }
        let holds = evaluate(&expression, value, old.unwrap_or(&Value::Null));
        if holds == Some(json!(true)) {
            continue;
        }
        let message = match json::text(rule, "/message") {
            "" => format!("failed rule: {text}"),
            message => message.to_owned(),
        };
        let field = format!("{path}{}", json::text(rule, "/fieldPath"));
        let field = if field.is_empty() {
            "<nil>".to_owned()
        } else {
            field
        };
        let mut error = FieldError::rule(field, message);
        error.reason = match json::text(rule, "/reason") {
            "FieldValueForbidden" => "FieldValueForbidden",
            "FieldValueRequired" => "FieldValueRequired",
            "FieldValueDuplicate" => "FieldValueDuplicate",
            _ => error.reason,
        };
        errors.push(error);
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let below = schema
                    .get("properties")
                    .and_then(|all| all.get(key))
                    .or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = below {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    check(
                        value,
                        old.and_then(|old| old.get(key)),
                        schema,
                        &path,
                        errors,
                    );
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (at, item) in items.iter().enumerate() {
                    // Items of an atomic list have no old value of their own.
                    check(item, None, schema, &format!("{path}[{at}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn mentions_old(expression: &Expr) -> bool {
    match expression {
        Expr::Root(old) => *old,
        Expr::Literal(_) => false,
        Expr::List(items) | Expr::Call(_, items) => items.iter().any(mentions_old),
        Expr::Field(of, _) | Expr::Not(of) => mentions_old(of),
        Expr::Index(a, b) | Expr::Binary(_, a, b) => mentions_old(a) || mentions_old(b),
        Expr::Choose(a, b, c) => mentions_old(a) || mentions_old(b) || mentions_old(c),
    }
}

fn parse(text: &str) -> Result<Expr, String> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let expression = parser.choose()?;
    match parser.peek() {
        None => Ok(expression),
        Some(extra) => Err(format!("Syntax error: unexpected {extra:?}")),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Literal(Value),
    Sign(&'static str),
}

const SIGNS: [&str; 18] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", ".", ",", "?", ":", "-",
];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut rest = text.trim_start();
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let taken = if first.is_ascii_alphabetic() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            tokens.push(match name {
                "true" | "false" => Token::Literal((name == "true").into()),
                "null" => Token::Literal(Value::Null),
                name => Token::Name(name.to_owned()),
            });
            after
        } else if first.is_ascii_digit() {
            let end = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(rest.len());
            let (digits, after) = rest.split_at(end);
            let number =
                serde_json::from_str(digits).map_err(|_| format!("bad number {digits}"))?;
            tokens.push(Token::Literal(number));
            after
        } else if first == '\'' || first == '"' {
            let mut content = String::new();
            let mut letters = rest.char_indices().skip(1);
            let end = loop {
                match letters.next() {
                    None => return Err("Syntax error: string without end".to_owned()),
                    Some((_, '\\')) => content.extend(letters.next().map(|(_, letter)| letter)),
                    Some((at, letter)) if letter == first => break at + 1,
                    Some((_, letter)) => content.push(letter),
                }
            };
            tokens.push(Token::Literal(content.into()));
            rest.get(end..).unwrap_or("")
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| format!("Syntax error: unexpected '{first}'"))?;
            tokens.push(Token::Sign(sign));
            rest.get(sign.len()..).unwrap_or("")
        };
        rest = taken.trim_start();
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, sign: &'static str) -> bool {
        let found = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, sign: &'static str) -> Result<(), String> {
        if self.eat(sign) {
            Ok(())
        } else {
            Err(format!("Syntax error: expected '{sign}'"))
        }
    }

    fn choose(&mut self) -> Result<Expr, String> {
        let test = self.any()?;
        if !self.eat("?") {
            return Ok(test);
        }
        let yes = self.choose()?;
        self.need(":")?;
        Ok(Expr::Choose(
            Box::new(test),
            Box::new(yes),
            Box::new(self.choose()?),
        ))
    }

    fn any(&mut self) -> Result<Expr, String> {
        let mut left = self.all()?;
        while self.eat("||") {
            left = Expr::Binary("||", Box::new(left), Box::new(self.all()?));
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<Expr, String> {
        let mut left = self.comparison()?;
        while self.eat("&&") {
            left = Expr::Binary("&&", Box::new(left), Box::new(self.comparison()?));
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Expr, String> {
        let left = self.unary()?;
        for sign in ["==", "!=", "<=", ">=", "<", ">"] {
            if self.eat(sign) {
                return Ok(Expr::Binary(sign, Box::new(left), Box::new(self.unary()?)));
            }
        }
        if self.peek() == Some(&Token::Name("in".to_owned())) {
            self.at += 1;
            return Ok(Expr::Binary("in", Box::new(left), Box::new(self.unary()?)));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.eat("!") {
            return Ok(Expr::Not(Box::new(self.unary()?)));
        }
        if self.eat("-") {
            return match self.unary()? {
                Expr::Literal(Value::Number(number)) => {
                    Ok(Expr::Literal(json!(-number.as_i64().unwrap_or(0))))
                }
                _ => Err("only numbers can be negated here".to_owned()),
            };
        }
        let mut value = self.primary()?;
        loop {
            if self.eat(".") {
                let Some(Token::Name(name)) = self.peek().cloned() else {
                    return Err("Syntax error: expected a field name".to_owned());
                };
                self.at += 1;
                if self.eat("(") {
                    let mut arguments = self.arguments(")")?;
                    arguments.insert(0, value);
                    value = call(name, arguments)?;
                } else {
                    value = Expr::Field(Box::new(value), name);
                }
            } else if self.eat("[") {
                let index = self.choose()?;
                self.need("]")?;
                value = Expr::Index(Box::new(value), Box::new(index));
            } else {
                return Ok(value);
            }
        }
    }

    fn primary(&mut self) -> Result<Expr, String> {
        if self.eat("(") {
            let inner = self.choose()?;
            self.need(")")?;
            return Ok(inner);
        }
        if self.eat("[") {
            return Ok(Expr::List(self.arguments("]")?));
        }
        let token = self.peek().cloned();
        self.at += 1;
        match token {
            Some(Token::Literal(value)) => Ok(Expr::Literal(value)),
            Some(Token::Name(name)) if name == "self" => Ok(Expr::Root(false)),
            Some(Token::Name(name)) if name == "oldSelf" => Ok(Expr::Root(true)),
            Some(Token::Name(name)) => {
                self.need("(")
                    .map_err(|_| format!("undeclared reference to '{name}'"))?;
                let arguments = self.arguments(")")?;
                call(name, arguments)
            }
            other => Err(format!("Syntax error: unexpected {other:?}")),
        }
    }

    fn arguments(&mut self, end: &'static str) -> Result<Vec<Expr>, String> {
        let mut arguments = Vec::new();
        while !self.eat(end) {
            arguments.push(self.choose()?);
            if !self.eat(",") {
                self.need(end)?;
                break;
            }
        }
        Ok(arguments)
    }
}

fn call(name: String, arguments: Vec<Expr>) -> Result<Expr, String> {
    let known = match name.as_str() {
        "has" => matches!(arguments.as_slice(), [Expr::Field(..)]),
        "size" => arguments.len() == 1,
        "startsWith" | "endsWith" | "contains" | "matches" => arguments.len() == 2,
        _ => false,
    };
    if known {
        Ok(Expr::Call(name, arguments))
    } else {
        Err(format!("'{name}' is not supported by this server"))
    }
}

/// None: an evaluation error, as of a field that isn't there.
fn evaluate(expression: &Expr, value: &Value, old: &Value) -> Option<Value> {
    let of = |expression: &Expr| evaluate(expression, value, old);
    Some(match expression {
        Expr::Literal(literal) => literal.clone(),
        Expr::List(items) => Value::Array(items.iter().map(of).collect::<Option<_>>()?),
        Expr::Root(is_old) => {
            if *is_old {
                old.clone()
            } else {
                value.clone()
            }
        }
        Expr::Field(base, field) => of(base)?.get(field)?.clone(),
        Expr::Index(base, index) => {
            let (base, index) = (of(base)?, of(index)?);
            match index {
                Value::String(key) => base.get(key)?.clone(),
                index => base.get(usize::try_from(index.as_u64()?).ok()?)?.clone(),
            }
        }
        Expr::Not(inner) => json!(!of(inner)?.as_bool()?),
        Expr::Choose(test, yes, no) => {
            if of(test)?.as_bool()? {
                of(yes)?
            } else {
                of(no)?
            }
        }
        // As in CEL, one side can decide even if the other is an error.
        Expr::Binary(sign @ ("&&" | "||"), a, b) => {
            let decides = json!(*sign == "||");
            let (a, b) = (of(a), of(b));
            if a.as_ref() == Some(&decides) || b.as_ref() == Some(&decides) {
                decides
            } else {
                a.and(b)?
            }
        }
        Expr::Binary(sign, a, b) => json!(compare(sign, &of(a)?, &of(b)?)?),
        Expr::Call(name, arguments) => evaluate_call(name, arguments, value, old)?,
    })
}

fn compare(sign: &str, a: &Value, b: &Value) -> Option<bool> {
    Some(match sign {
        "==" => a == b,
        "!=" => a != b,
        "in" => match b {
            Value::Array(items) => items.contains(a),
            Value::Object(map) => map.contains_key(a.as_str()?),
            _ => return None,
        },
        _ => {
            let order = match (a, b) {
                (Value::String(a), Value::String(b)) => a.cmp(b),
                _ => a.as_f64()?.partial_cmp(&b.as_f64()?)?,
            };
            match sign {
                "<" => order.is_lt(),
                ">" => order.is_gt(),
                "<=" => order.is_le(),
                _ => order.is_ge(),
            }
        }
    })
}

fn evaluate_call(name: &str, arguments: &[Expr], value: &Value, old: &Value) -> Option<Value> {
    let first = arguments.first()?;
    if name == "has" {
        let Expr::Field(base, field) = first else {
            return None;
        };
        return Some(json!(evaluate(base, value, old)?.get(field).is_some()));
    }
    let first = evaluate(first, value, old)?;
    if name == "size" {
        return Some(match &first {
            Value::String(text) => json!(text.chars().count()),
            Value::Array(items) => json!(items.len()),
            Value::Object(map) => json!(map.len()),
            _ => return None,
        });
    }
    let second = evaluate(arguments.get(1)?, value, old)?;
    let (text, part) = (first.as_str()?, second.as_str()?);
    Some(json!(match name {
        "startsWith" => text.starts_with(part),
        "endsWith" => text.ends_with(part),
        "contains" => text.contains(part),
        _ => Regex::new(part).ok()?.is_match(text),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: &str, value: Value, old: Value) -> Option<Value> {
        evaluate(&parse(rule).unwrap(), &value, &old)
    }

    #[test]
    fn rules_of_the_subset_are_evaluated() {
        let spec = json!({"a": "x", "n": 3, "l": ["p"]});
        assert_eq!(
            holds("self.a == oldSelf.a", spec.clone(), spec.clone()),
            Some(json!(true))
        );
        assert_eq!(
            holds("self == oldSelf", spec.clone(), json!({})),
            Some(json!(false))
        );
        assert_eq!(
            holds("!has(self.b) || self.b > 1", spec.clone(), json!({})),
            Some(json!(true))
        );
        assert_eq!(
            holds(
                "self.a in ['x', 'y'] && size(self.l) == 1",
                spec.clone(),
                json!({})
            ),
            Some(json!(true))
        );
        assert_eq!(holds("self.missing == 1", spec, json!({})), None);
    }

    #[test]
    fn what_goes_beyond_the_subset_is_refused() {
        for rule in [
            "self.all(x, x > 1)",
            "duration(self.a) > duration('1s')",
            "self.a ==",
            "foo",
        ] {
            assert!(check_rule(&json!({"rule": rule})).is_err(), "{rule}");
        }
    }
}
