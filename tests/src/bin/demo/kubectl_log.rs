//! What kubectl says it sent: the request lines that it logs at `-v=6`, parted from its real output.

/// A request as the client logged it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) uri: String,
    /// The answer's status.
    pub(crate) code: Option<u16>,
}

/// Parts kubectl's standard error into the requests it logged and what is meant for people.
pub(crate) fn part(stderr: &str) -> (Vec<Sent>, String) {
    let mut sent = Vec::new();
    let mut rest = String::new();
    let mut in_object = false;
    for line in stderr.lines() {
        if is_log_line(line) {
            sent.extend(request(line));
            // A refusal's Status follows, over many lines.
            in_object = line.ends_with("[{");
        } else if in_object {
            in_object = line != "}]";
        } else {
            rest.push_str(line);
            rest.push('\n');
        }
    }
    (sent, rest)
}

/// klog's form: a letter for the level, four digits of the date, a space.
fn is_log_line(line: &str) -> bool {
    let mut characters = line.chars();
    characters.next().is_some_and(|level| "IWEF".contains(level))
        && characters.by_ref().take(4).filter(char::is_ascii_digit).count() == 4
        && characters.next() == Some(' ')
}

/// Both forms: `GET https://… 200 OK in 3 milliseconds` until 1.32, and since then
/// `"Response" verb="GET" url="https://…" status="200 OK" milliseconds=3`.
fn request(line: &str) -> Option<Sent> {
    if let Some(url) = field(line, "url") {
        let code = field(line, "status")?.split(' ').next()?.parse().ok();
        return Some(Sent {
            method: field(line, "verb")?.to_owned(),
            uri: path_of(url)?,
            code,
        });
    }
    let (_, message) = line.split_once("] ")?;
    let mut words = message.split(' ');
    let (method, url) = (words.next()?, words.next()?);
    let code = words.next().and_then(|word| word.parse().ok());
    let is_method = !method.is_empty() && method.chars().all(|letter| letter.is_ascii_uppercase());
    // Without a status it is another line about the same request.
    code.filter(|_| is_method)?;
    Some(Sent {
        method: method.to_owned(),
        uri: path_of(url)?,
        code,
    })
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split('"').next()
}

fn path_of(url: &str) -> Option<String> {
    let (_, rest) = url.strip_prefix("https://")?.split_once('/')?;
    Some(format!("/{rest}"))
}

#[cfg(test)]
mod tests {
    use super::{Sent, part};

    #[test]
    fn both_forms_of_the_log_are_read() {
        let sent = |method: &str, uri: &str, code| Sent {
            method: method.to_owned(),
            uri: uri.to_owned(),
            code,
        };
        let stderr = "\
I1121 22:00:00.000000       1 round_trippers.go:560] GET https://10.96.0.1:443/api?timeout=32s 200 OK in 3 milliseconds
I1121 22:00:00.000000       1 round_trippers.go:632] \"Response\" verb=\"POST\" url=\"https://[fd00::1]:443/apis/x\" status=\"201 Created\" milliseconds=3
I1121 22:00:00.000000       1 merged_client_builder.go:121] Using in-cluster configuration
I1121 22:00:00.000000       1 helpers.go:246] server response object: [{
  \"kind\": \"Status\"
}]
Error from server (Forbidden): pods is forbidden
";
        let (seen, rest) = part(stderr);
        assert_eq!(
            seen,
            [
                sent("GET", "/api?timeout=32s", Some(200)),
                sent("POST", "/apis/x", Some(201))
            ]
        );
        assert_eq!(rest, "Error from server (Forbidden): pods is forbidden\n");
    }
}
