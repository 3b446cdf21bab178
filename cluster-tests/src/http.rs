//! Just enough HTTP/1.1 to ask a node for `/readyz` and `/metrics`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A node that is alive answers these requests at once; past this it counts as silent.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a node answered.
#[derive(Debug)]
pub(crate) struct Response {
    /// The HTTP status, 200 when all is well.
    pub(crate) status: u16,
    /// The body, decoded from whatever transfer coding it came in.
    pub(crate) body: String,
}

/// `GET path` on a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).context("an HTTP answer that is not UTF-8")?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("an HTTP answer without a header end")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("an HTTP answer without a status")?;
    let chunked = head
        .lines()
        .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if chunked {
        unchunk(body)?
    } else {
        body.to_owned()
    };
    Ok(Response { status, body })
}

fn unchunk(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk without a size")?;
        let size =
            usize::from_str_radix(size.trim(), 16).context("a chunk size that is no number")?;
        if size == 0 {
            return Ok(body);
        }
        let Some(chunk) = after.get(..size) else {
            bail!("a chunk cut short")
        };
        body.push_str(chunk);
        rest = after[size..].trim_start_matches("\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(
            unchunk("4\r\nkitt\r\n5\r\niwake\r\n0\r\n\r\n").unwrap(),
            "kittiwake"
        );
        assert!(unchunk("9\r\nshort").is_err());
    }
}
