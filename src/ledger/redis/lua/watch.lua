-- The heartbeat of a node in a bucket, and the rebuild of a bucket that was lost.
--
-- KEYS[1] is the marker: the epoch while the bucket is in order, '?' and the epoch while it is rebuilt. A bucket whose
-- marker is gone was emptied; one whose server is another process than the one that began the epoch may have lost its
-- last writes. Either begins a new epoch, in which nothing is decided until every node that is known to live has told
-- again what it holds and what the store has not, or until it had time enough to.
-- ask: node; fresh: name of an epoch to begin; peers: nodes that this one knows to live; told: the epoch that it has
--      told everything in ('' for none); least, most: how long a rebuild takes (µs); alive: how long a heartbeat
--      counts (µs); known: how long it is remembered

local bucket = ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ask = cmsgpack.unpack(ARGV[4])
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''

local marker = redis.call('GET', KEYS[1])
local raw = redis.call('GET', bucket .. 'rebuild')
local state = raw and cmsgpack.unpack(raw)
if not marker or not state or state.server ~= server then
  marker = '?' .. ask.fresh
  state = { server = server, since = now }
  redis.call('SET', KEYS[1], marker)
  redis.call('SET', bucket .. 'rebuild', cmsgpack.pack(state))
  redis.call('DEL', bucket .. 'told', bucket .. 'expected')
end
redis.call('ZADD', bucket .. 'nodes', now, ask.node)
redis.call('ZREMRANGEBYSCORE', bucket .. 'nodes', '-inf', now - ask.known)
local nodes = redis.call('ZRANGEBYSCORE', bucket .. 'nodes', now - ask.alive, '+inf')

local is_live = string.sub(marker, 1, 1) ~= '?'
local epoch = is_live and marker or string.sub(marker, 2)
if not is_live then
  for index = 1, #ask.peers do redis.call('SADD', bucket .. 'expected', ask.peers[index]) end
  for index = 1, #nodes do redis.call('SADD', bucket .. 'expected', nodes[index]) end
  if ask.told == epoch then redis.call('SADD', bucket .. 'told', ask.node) end
  local waited = now - state.since
  local is_complete = #redis.call('SDIFF', bucket .. 'expected', bucket .. 'told') == 0
  if waited >= ask.most or (waited >= ask.least and is_complete) then
    redis.call('SET', KEYS[1], epoch)
    is_live = true
  end
end
return cmsgpack.pack({ status = 'done', now = now, epoch = epoch, is_live = is_live, nodes = nodes })
