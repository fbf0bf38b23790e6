-- Answers to requests with an Idempotency-Key, shared by the nodes: who may run a request, and what it was answered.
-- The Rust side is ../answers.rs.
-- ask: op 'begin', 'end' or 'forget'; node; claim (an id of the attempt to run it); body (hash of the request's);
--      at (µs); kept (ms); answer (base64, '' for none); room: bytes that the answers of a bucket may take together;
--      silent: a node that gave no sign of life for so long (µs) runs nothing any more
--
-- `a` holds the record: body, begun at, state ('running', 'answered', 'not kept'), node, claim. `b` holds the answer.
-- Of the bucket, `answers` orders the answers by their age, and `sizes` says what each takes; '' there is the sum.

local ask = cmsgpack.unpack(ARGV[4])

local bucket = string.match(ROOT, '^(.-})') .. ':'
local time = call('TIME')
local present = time[1] * 1000000 + time[2]
local raw = call('GET', ROOT .. 'a')
local record = raw and cmsgpack.unpack(raw)

local function take_away(root)
  call('DEL', root .. 'b')
  call('ZREM', bucket .. 'answers', root)
  local size = call('HGET', bucket .. 'sizes', root)
  if size then
    call('HDEL', bucket .. 'sizes', root)
    call('HINCRBY', bucket .. 'sizes', '', -size)
  end
end

local function answer(reply)
  reply.status, reply.now = 'done', present
  return cmsgpack.pack(reply)
end

local function keep(ttl)
  call('SET', ROOT .. 'a', cmsgpack.pack(record), 'PX', ttl)
end

if ask.op == 'begin' then
  if record and record.at + ask.kept * 1000 <= ask.at and record.state ~= 'running' then
    take_away(ROOT)
    record = nil
  end
  local is_rerun = false
  if record then
    if record.body ~= ask.body then return answer({ found = 'other' }) end
    if record.state == 'running' then
      local seen = call('ZSCORE', bucket .. 'nodes', record.node)
      if record.node == ask.node or (seen and present - tonumber(seen) < ask.silent) then
        return answer({ found = 'running' })
      end
      is_rerun = true
    else
      local body = record.state == 'answered' and call('GET', ROOT .. 'b')
      if not body then return answer({ found = 'not kept' }) end
      return answer({ found = 'answered', body = body })
    end
  end
  local at = is_rerun and record.at or ask.at
  record = { body = ask.body, at = at, state = 'running', node = ask.node, claim = ask.claim }
  keep(ask.kept)
  return answer({ found = is_rerun and 'again' or 'run', at = at })
end

-- Told again of an end, or of a claim of which it heard nothing more, a node must not end another's, nor its own next.
local is_own = record and record.state == 'running' and record.node == ask.node and record.claim == ask.claim
if ask.op == 'forget' then
  if is_own then call('DEL', ROOT .. 'a') end
elseif is_own then
  local ttl = math.max(math.ceil((record.at - ask.at) / 1000) + ask.kept, 1000)
  record.state = ask.answer == '' and 'not kept' or 'answered'
  keep(ttl)
  if ask.answer ~= '' then
    call('SET', ROOT .. 'b', ask.answer, 'PX', ttl)
    call('ZADD', bucket .. 'answers', record.at, ROOT)
    call('HSET', bucket .. 'sizes', ROOT, #ask.answer)
    call('HINCRBY', bucket .. 'sizes', '', #ask.answer)
    local old = call('ZRANGEBYSCORE', bucket .. 'answers', '-inf', ask.at - ask.kept * 1000, 'LIMIT', 0, 100)
    for index = 1, #old do take_away(old[index]) end
    while tonumber(call('HGET', bucket .. 'sizes', '')) > ask.room do
      local oldest = call('ZRANGE', bucket .. 'answers', 0, 0)[1]
      if not oldest then break end
      take_away(oldest) -- its record stays: that there was an answer is still known
    end
  end
end
return answer({})
