-- What all scripts share. The Rust side of each is in ../wire.rs; layout and invariants are told in ../../redis.rs.
--
-- KEYS[1]  the epoch marker of the tenant's bucket: all keys of a call carry its hash tag, so they lie in one slot
-- ARGV     epoch, root of the tenant's keys, fresh id, now (µs, -1: this server's clock), not after (µs, -1: no
--          bound), what the script is asked (MessagePack)
--
-- Quantities are whole numbers within ±(2^53 - 1), which doubles hold exactly; sums stop there.

local MAX = 9007199254740991
local SECOND = 1000000
local AHEAD = 360 * SECOND          -- how far ahead of the present events may be dated; ../../tenant.rs has the same
local KEPT_AFTER_END = 300 * SECOND -- a counter stays that long after its window, for late settles
local IDLE_MS = 3 * 86400 * 1000    -- what nobody wrote to for that long goes; it is read back from the store
local REAPED_AT_ONCE = 500
local LISTED_AT_ONCE = 100

local EPOCH, ROOT, FRESH = ARGV[1], ARGV[2], ARGV[3]
local ask = cmsgpack.unpack(ARGV[6])

-- A counter: id, feature, start, end, settled, reserved, hard limit last seen (-1: none)
local ID, FEATURE, START, END, SETTLED, RESERVED, HARD = 1, 2, 3, 4, 5, 6, 7
-- A hold: node ('' for one that outlives its node), key, user, admitted at, granted [[feature, quantity]], request id
local H_KEY, H_USER, H_AT, H_GRANTED = 2, 3, 4, 5
-- An event: key, user, admitted at, used [[feature, quantity]]
local E_KEY, E_USER, E_AT, E_USED = 1, 2, 3, 4
local RELEASED = 'x' -- in a hold's place: ended by hand, its owner does not know it yet

local function clamp(number)
  if number > MAX then return MAX end
  if number < -MAX then return -MAX end
  return number
end

local function answer(reply)
  return cmsgpack.pack(reply)
end

local now = tonumber(ARGV[4])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * SECOND + time[2]
end

-- Nil if the call may go on, else the answer to give.
local function refused(needs_live)
  local marker = redis.call('GET', KEYS[1])
  if marker ~= EPOCH and (needs_live or marker ~= '?' .. EPOCH) then
    return answer({ status = 'epoch', now = now })
  end
  local not_after = tonumber(ARGV[5])
  if not_after >= 0 and now > not_after then
    return answer({ status = 'late', now = now })
  end
end

local tenant -- epoch, incarnation, drain sequence, latest event; has_keys and has_users: counters of that scope exist

local function save_tenant()
  redis.call('SET', ROOT .. 'm', cmsgpack.pack(tenant), 'PX', IDLE_MS)
end

-- A tenant that is not here, or is of another epoch, begins anew: its counters are read from the store when needed.
local function open_tenant()
  local raw = redis.call('GET', ROOT .. 'm')
  tenant = raw and cmsgpack.unpack(raw)
  if tenant and tenant.epoch == EPOCH then return end
  redis.call('DEL', ROOT .. 'h', ROOT .. 'd', ROOT .. 'e', ROOT .. 'g', ROOT .. 't', ROOT .. 's', ROOT .. 'f')
  tenant = { epoch = EPOCH, inc = FRESH, drains = 0, latest = now + AHEAD, has_keys = false, has_users = false }
  save_tenant()
end

-- The counters of the tenant ('t'), a key ('k:…') or a user ('u:…'); each is read and written once a call.
local subjects, changed = {}, {}

local function subject(name)
  local found = subjects[name]
  if found then return found end
  local raw = redis.call('GET', ROOT .. name)
  found = raw and cmsgpack.unpack(raw)
  -- The first is the incarnation that they belong to.
  if not found or found[1] ~= tenant.inc then found = { tenant.inc } end
  subjects[name] = found
  return found
end

-- Those that usage of a key ('' for none) and a user belongs to, as far as they have counters.
local function names_of(key, user)
  local names = { 't' }
  if tenant.has_keys and key ~= '' then names[#names + 1] = 'k:' .. key end
  if tenant.has_users then names[#names + 1] = 'u:' .. user end
  return names
end

local function find(name, id)
  local list = subject(name)
  for index = 2, #list do
    if list[index][ID] == id then return list[index] end
  end
end

local function save_subjects()
  for name in pairs(changed) do
    local list, kept, last = subjects[name], { tenant.inc }, 0
    for index = 2, #list do
      local counter = list[index]
      if counter[RESERVED] ~= 0 or now <= counter[END] + KEPT_AFTER_END then
        kept[#kept + 1] = counter
        if counter[END] > last then last = counter[END] end
      end
    end
    if #kept == 1 then
      redis.call('DEL', ROOT .. name)
      if name ~= 't' then redis.call('SREM', ROOT .. 's', name) end
    else
      local ttl = math.ceil((last + KEPT_AFTER_END - now) / 1000)
      if ttl > IDLE_MS then ttl = IDLE_MS end
      if ttl < 60000 then ttl = 60000 end
      redis.call('SET', ROOT .. name, cmsgpack.pack(kept), 'PX', ttl)
    end
  end
end

local function quantity_of(pairs_list, feature)
  for index = 1, #pairs_list do
    if pairs_list[index][1] == feature then return pairs_list[index][2] end
  end
  return 0
end

-- Calls visit(counter, quantity, name) for every counter that usage of key and user, admitted at `at`, belongs to.
local function visit(key, user, at, quantities, visitor)
  local names = names_of(key, user)
  for n = 1, #names do
    local list = subject(names[n])
    for index = 2, #list do
      local counter = list[index]
      if counter[START] <= at and at < counter[END] then
        local quantity = quantity_of(quantities, counter[FEATURE])
        if quantity ~= 0 then
          visitor(counter, quantity)
          changed[names[n]] = true
        end
      end
    end
  end
end

local function belongs(name, key, user)
  return name == 't' or name == 'k:' .. key or name == 'u:' .. user
end

-- What open holds hold in a counter that appears while they are open.
local function reserved_of(name, counter)
  local sum, holds = 0, redis.call('HVALS', ROOT .. 'h')
  for index = 1, #holds do
    if holds[index] ~= RELEASED then
      local hold = cmsgpack.unpack(holds[index])
      local at = hold[H_AT]
      if counter[START] <= at and at < counter[END] and belongs(name, hold[H_KEY], hold[H_USER]) then
        sum = sum + quantity_of(hold[H_GRANTED], counter[FEATURE])
      end
    end
  end
  return clamp(sum)
end

local function add_counter(name, counter)
  local list = subject(name)
  list[#list + 1] = counter
  changed[name] = true
  if name ~= 't' then redis.call('SADD', ROOT .. 's', name) end
  local scope = string.sub(name, 1, 1)
  if scope == 'k' and not tenant.has_keys then
    tenant.has_keys = true
    save_tenant()
  elseif scope == 'u' and not tenant.has_users then
    tenant.has_users = true
    save_tenant()
  end
end

-- Opens a hold until `deadline`. No sum may pass the end of the scale, or it could not be taken off again exactly.
local function open_hold(id, hold, deadline)
  local granted = {}
  for index = 1, #hold[H_GRANTED] do
    granted[index] = { hold[H_GRANTED][index][1], hold[H_GRANTED][index][2] }
  end
  visit(hold[H_KEY], hold[H_USER], hold[H_AT], hold[H_GRANTED], function(counter, quantity)
    local room = MAX - counter[RESERVED]
    if quantity > room then
      for index = 1, #granted do
        if granted[index][1] == counter[FEATURE] and granted[index][2] > room then granted[index][2] = room end
      end
    end
  end)
  hold[H_GRANTED] = granted
  visit(hold[H_KEY], hold[H_USER], hold[H_AT], granted, function(counter, quantity)
    counter[RESERVED] = counter[RESERVED] + quantity
  end)
  redis.call('HSET', ROOT .. 'h', id, cmsgpack.pack(hold))
  redis.call('ZADD', ROOT .. 'd', deadline, id)
end

-- Gives back what a hold holds; the hold, if it was open.
local function end_hold(id)
  local raw = redis.call('HGET', ROOT .. 'h', id)
  if not raw then return nil end
  redis.call('HDEL', ROOT .. 'h', id)
  redis.call('ZREM', ROOT .. 'd', id)
  if raw == RELEASED then return nil end
  local hold = cmsgpack.unpack(raw)
  visit(hold[H_KEY], hold[H_USER], hold[H_AT], hold[H_GRANTED], function(counter, quantity)
    counter[RESERVED] = counter[RESERVED] - quantity
    if counter[RESERVED] < 0 then counter[RESERVED] = 0 end
  end)
  return hold
end

-- Ends holds whose deadline is past; how many were of requests, and how many reservations.
local function reap()
  local due = redis.call('ZRANGEBYSCORE', ROOT .. 'd', '-inf', now, 'LIMIT', 0, REAPED_AT_ONCE)
  local reaped, expired = 0, 0
  for index = 1, #due do
    local hold = end_hold(due[index])
    if hold then
      if hold[1] == '' then expired = expired + 1 else reaped = reaped + 1 end
    end
  end
  return reaped, expired
end

-- No event that is known lies after this. Up to the end of the second, so that it is written once a second at most;
-- windows begin with a second.
local function note_event_at(at)
  if at > tenant.latest then
    tenant.latest = math.floor(at / SECOND) * SECOND + SECOND - 1
    save_tenant()
  end
end

-- An id that was made from a key (a version 5 UUID) may be recorded by two nodes: it is remembered for a while after
-- the first of them has done with it. Any other id is one node's own.
local REMEMBERED = 600 * SECOND

local function may_be_repeated(id)
  return string.sub(id, 17, 17) == '5'
end

local function was_forgotten(id)
  return may_be_repeated(id) and redis.call('ZSCORE', ROOT .. 'f', id) ~= false
end

-- What may be in the store: id, event.
local function draining()
  local flat, list = redis.call('HGETALL', ROOT .. 'g'), {}
  for index = 1, #flat, 2 do
    list[#list + 1] = { flat[index], cmsgpack.unpack(flat[index + 1]) }
  end
  return list
end
