//! A model that costs next to nothing: canned answers, whole or as a stream of [`FRAMES`] frames.
//!
//! What is measured is the proxy before it, so this parses only what it must, and writes each answer, and each frame
//! of a stream, at once. Every frame says when it was sent.

use std::{io, time::Duration};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use super::clock;

/// Content frames of a stream; the usage and the end mark follow as two more, written together.
pub(crate) const FRAMES: u32 = 100;
/// In a request's body: how long the stream pauses before each frame.
pub(crate) const PAUSE: &str = "\"pause_us\":";
/// In a frame: when it was sent, see [`clock::micros`].
pub(crate) const SENT: &str = "\"sent\":";

const ANSWER: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"Limits are checked before the model runs, and what was used is written down before this answer leaves."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":24,"completion_tokens":21,"total_tokens":45}}"#;

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connections.spawn(async move {
            // A client that goes away ends its connection, and nothing else.
            let _ = answer_all(stream).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer_all(mut stream: TcpStream) -> io::Result<()> {
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let mut buffer = Vec::with_capacity(128 * 1024);
    loop {
        let Some((head, length)) = read_request(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let body = &buffer[head..length];
        if memmem::find(body, b"\"stream\":true").is_some() {
            let pause = number_after(body, PAUSE).unwrap_or(0);
            send_stream(&mut stream, Duration::from_micros(pause)).await?;
        } else {
            stream.write_all(whole.as_bytes()).await?;
        }
        buffer.drain(..length);
    }
}

/// Reads until `buffer` begins with a whole request: where its body begins, and where it ends. `None` at the end.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(usize, usize)>> {
    loop {
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            let head = end + 4;
            let length = head + content_length(&buffer[..head]);
            while buffer.len() < length {
                if stream.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
            }
            return Ok(Some((head, length)));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn send_stream(stream: &mut TcpStream, pause: Duration) -> io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let begun = Instant::now();
    for number in 1..=FRAMES {
        tokio::time::sleep_until(begun + pause * number).await;
        let content = r#"[{"index":0,"delta":{"content":" word"},"finish_reason":null}]"#;
        stream.write_all(frame(content, "").as_bytes()).await?;
    }
    let finish = r#"[{"index":0,"delta":{},"finish_reason":"stop"}]"#;
    let usage = r#","usage":{"prompt_tokens":24,"completion_tokens":100,"total_tokens":124}"#;
    let mut end = frame(finish, usage);
    end.push_str("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    stream.write_all(end.as_bytes()).await
}

/// One frame as a chunk of its own.
fn frame(choices: &str, more: &str) -> String {
    let sent = clock::micros();
    let data = format!(
        "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"gpt-4o\",{SENT}{sent},\"choices\":{choices}{more}}}\n\n"
    );
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// The length that a head announces for its body; 0 if none.
pub(crate) fn content_length(head: &[u8]) -> usize {
    let mut lines = head.split(|&byte| byte == b'\n');
    let name = b"content-length:";
    let value = lines.find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        found.eq_ignore_ascii_case(name).then_some(value)
    });
    value
        .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok())
        .unwrap_or(0)
}

/// The whole number that follows `name` in `text`.
pub(crate) fn number_after(text: &[u8], name: &str) -> Option<u64> {
    let start = memmem::find(text, name.as_bytes())? + name.len();
    let digits = text[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let length = digits.count();
    std::str::from_utf8(&text[start..start + length])
        .ok()?
        .parse()
        .ok()
}
