-- What is rare in deciding and counting, and what the other scripts share.

local SECOND = 1000000
local AHEAD = 360 * SECOND          -- how far ahead of the present events may be dated; ../../tenant.rs has the same
local KEPT_AFTER_END = 300 * SECOND -- a counter stays that long after its window, for late settles
local IDLE_MS = 3 * 86400 * 1000    -- what nobody wrote to for that long goes; it is read back from the store
local FRESHENED = 3600 * SECOND     -- how often an expiry is put off
local REAPED_AT_ONCE = 500
local LISTED_AT_ONCE = 100
local NAMED = 16 -- features below it have a fixed number; the tenant keeps the names of the others

-- A hold is kept as: admitted at, 1 if its deadline is in `d` (0: it is a lease after that), how many numbers follow,
-- [feature, quantity], and as MessagePack: node ('' for one that outlives its node), key, user, request id. Key and
-- user are the names of their subjects ('k:…' or '', 'u:…').
local RELEASED = 'x' -- in a hold's place: ended by hand, its owner does not know it yet
-- An event is kept as: 'e' (surely not in the store) or 'g' (may be there), and as MessagePack: key, user, admitted at,
-- used [[feature, quantity]].
local E_KEY, E_USER, E_AT, E_USED = 1, 2, 3, 4

local function answer(reply)
  reply.now = now
  return cmsgpack.pack(reply)
end

local function clamp(number)
  if number > MAX then return MAX end
  if number < -MAX then return -MAX end
  return number
end

local function list_of(raw)
  return read(raw, 1, #raw / 8)
end

local named -- of features without a fixed number: number, name, one after the other
local tenant -- its list
-- Each subject's list is read and written once a call.
local subjects, changed = {}, {}

local function set_tenant(list)
  tenant = list
  subjects, changed = { t = list }, { t = true }
end

-- What events are marked with, so that their loss is noticed.
local function mark()
  return struct.pack('<dd', tenant[1], tenant[INC])
end

-- The counters go, to be read from the store when needed. What is held and what is counted stays.
local function begin_anew()
  set_tenant({ q[1], q[2], tenant[DRAINS], math.max(tenant[LATEST], now + AHEAD), 0, tenant[DUE] })
  call('DEL', ROOT .. 's')
  call('HSET', ROOT .. 'e', '', mark())
end

-- A tenant that is not here, or is of another epoch, begins anew. Where only its own key was lost, its events are still
-- those that count and are not in the store.
local function open_tenant()
  local raw = call('HGET', ROOT, '')
  if raw then
    set_tenant(list_of(raw))
    changed = {}
    if tenant[1] == q[1] then return end
  end
  set_tenant({ q[1], q[2], 0, now + AHEAD, 0, now })
  local events = call('HGET', ROOT .. 'e', '')
  if raw or not events or string.sub(events, 1, 8) ~= string.sub(mark(), 1, 8) then
    call('DEL', ROOT .. 'e', ROOT .. 'f')
  end
  call('DEL', ROOT, ROOT .. 'd', ROOT .. 's')
  call('HSET', ROOT, '', written(tenant), 'names', '')
  call('HSET', ROOT .. 'e', '', mark())
  call('PEXPIRE', ROOT, IDLE_MS)
  call('PEXPIRE', ROOT .. 'e', IDLE_MS)
end

-- Where events were lost, nobody knows any more which ones the counters have; those that came since are still known.
local function check_events()
  if call('HGET', ROOT .. 'e', '') ~= mark() then begin_anew() end
end

-- The list of the tenant ('t'), a key ('k:…') or a user ('u:…').
local function subject(name)
  local found = subjects[name]
  if found then return found end
  local raw = call('GET', ROOT .. name)
  found = raw and list_of(raw)
  if not found or found[INC] ~= tenant[INC] then
    found = { tenant[1], tenant[INC], 0, 0, 0, 0 }
  end
  subjects[name] = found
  return found
end

local function find(name, feature, first, last)
  local list = subject(name)
  for c = FIRST, #list, STRIDE do
    if list[c] == feature and list[c + 1] == first and list[c + 2] == last then return list, c end
  end
end

local function save_subjects()
  for name in pairs(changed) do
    local list = subjects[name]
    if name == 'names' then
      call('HSET', ROOT, name, cmsgpack.pack(named))
    elseif name == 't' then
      call('HSET', ROOT, '', written(list))
    elseif now < list[DUE] then
      call('SET', ROOT .. name, written(list), 'KEEPTTL')
    else
      local last = 0
      for c = FIRST, #list, STRIDE do
        if list[c + 2] > last then last = list[c + 2] end
      end
      list[DUE] = now + FRESHENED
      local ttl = math.ceil((last + KEPT_AFTER_END - now) / 1000)
      if ttl > IDLE_MS then ttl = IDLE_MS end
      if ttl < 60000 then ttl = 60000 end
      call('SET', ROOT .. name, written(list), 'PX', ttl)
    end
  end
end

-- Calls visit(list, place, quantity) for every counter that usage of key and user, admitted at `at`, belongs to;
-- quantities are [feature, quantity] one after the other.
local function visit(key, user, at, quantities, visitor)
  local names = { 't' }
  if tenant[SCOPES] % 2 == 1 and key ~= '' then names[2] = key end
  if tenant[SCOPES] >= 2 then names[#names + 1] = user end
  for n = 1, #names do
    local list = subject(names[n])
    for c = FIRST, #list, STRIDE do
      if list[c + 1] <= at and at < list[c + 2] then
        for index = 1, #quantities, 2 do
          if quantities[index] == list[c] then
            visitor(list, c, quantities[index + 1])
            changed[names[n]] = true
          end
        end
      end
    end
  end
end

-- When it was admitted, what it holds, the rest as it is packed, and whether its deadline is in `d`.
local function parts_of(hold)
  local at, has_deadline, count = struct.unpack('<ddd', hold)
  return at, read(hold, 25, count), string.sub(hold, 25 + 8 * count), has_deadline == 1
end

-- One whose deadline is in `d`.
local function hold_of(at, granted, rest)
  return struct.pack('<ddd', at, 1, #granted) .. written(granted) .. rest
end

local held -- each open hold: when it was admitted, what it holds, key, user

local function open_holds()
  if held then return held end
  held = {}
  local flat = call('HGETALL', ROOT)
  for index = 1, #flat, 2 do
    if flat[index] ~= '' and flat[index] ~= 'names' and flat[index + 1] ~= RELEASED then
      local at, granted, rest = parts_of(flat[index + 1])
      local _, key, user = unpack(cmsgpack.unpack(rest))
      held[#held + 1] = { at, granted, key, user }
    end
  end
  return held
end

local function belongs(name, key, user)
  return name == 't' or name == key or name == user
end

-- What open holds hold in a counter that appears while they are open.
local function reserved_of(name, feature, first, last)
  local sum, holds = 0, open_holds()
  for index = 1, #holds do
    local at, granted, key, user = unpack(holds[index])
    if first <= at and at < last and belongs(name, key, user) then
      for g = 1, #granted, 2 do
        if granted[g] == feature then sum = sum + granted[g + 1] end
      end
    end
  end
  return clamp(sum)
end

local function note_name(feature, name)
  if feature < NAMED then return end
  if not named then
    local kept = call('HGET', ROOT, 'names')
    named = kept and kept ~= '' and cmsgpack.unpack(kept) or {}
  end
  for index = 1, #named, 2 do
    if named[index] == feature then return end
  end
  named[#named + 1] = feature
  named[#named + 1] = name
  changed.names = true
end

-- From now on counters of a subject of that kind are looked for.
local function note_scope(name)
  local scope = ({ k = 1, u = 2 })[string.sub(name, 1, 1)]
  if scope and tenant[SCOPES] ~= scope and tenant[SCOPES] ~= 3 then
    tenant[SCOPES] = tenant[SCOPES] + scope
    changed.t = true
  end
end

local function without_old(list)
  local kept = {}
  for index = 1, FIRST - 1 do kept[index] = list[index] end
  for c = FIRST, #list, STRIDE do
    if list[c + 4] ~= 0 or now <= list[c + 2] + KEPT_AFTER_END then
      for index = c, c + STRIDE - 1 do kept[#kept + 1] = list[index] end
    end
  end
  return kept
end

-- Puts a counter in place; those go whose windows are long over.
local function add_counter(name, feature, feature_name, first, last, settled, hard)
  local list = subject(name)
  for c = FIRST, #list, STRIDE do
    if list[c + 4] == 0 and now > list[c + 2] + KEPT_AFTER_END then
      list = without_old(list)
      break
    end
  end
  local reserved = reserved_of(name, feature, first, last)
  local counter = { feature, first, last, settled, reserved, hard }
  for index = 1, STRIDE do list[#list + 1] = counter[index] end
  note_name(feature, feature_name)
  subjects[name], changed[name] = list, true
  if name == 't' then
    tenant = list
    return
  end
  list[DUE] = 0 -- to be written with an expiry that fits
  call('SADD', ROOT .. 's', name)
  note_scope(name)
end

local function set_deadline(id, deadline)
  call('ZADD', ROOT .. 'd', deadline, id)
  if deadline < tenant[DUE] then
    tenant[DUE] = deadline
    changed.t = true
  end
end

-- Opens a hold until `deadline`. No sum may pass the end of the scale, or it could not be taken off again exactly.
local function open_hold(id, hold, deadline)
  local at, granted, rest = parts_of(hold)
  local _, key, user = unpack(cmsgpack.unpack(rest))
  local room = {}
  visit(key, user, at, granted, function(list, c)
    room[list[c]] = math.min(room[list[c]] or MAX, MAX - list[c + 4])
  end)
  for index = 1, #granted, 2 do
    granted[index + 1] = math.min(granted[index + 1], room[granted[index]] or MAX)
  end
  visit(key, user, at, granted, function(list, c, quantity)
    list[c + 4] = list[c + 4] + quantity
  end)
  call('HSET', ROOT, id, hold_of(at, granted, rest))
  set_deadline(id, deadline)
end

-- Gives back what a hold holds; the node that made it, if it was open.
local function end_hold(id)
  local hold = call('HGET', ROOT, id)
  call('ZREM', ROOT .. 'd', id)
  if not hold then return nil end
  call('HDEL', ROOT, id)
  if hold == RELEASED then return nil end
  local at, granted, rest = parts_of(hold)
  local node, key, user = unpack(cmsgpack.unpack(rest))
  visit(key, user, at, granted, function(list, c, quantity)
    list[c + 4] = math.max(list[c + 4] - quantity, 0)
  end)
  return node
end

-- Puts the deadlines of all holds into `d`. One whose deadline was there and is lost gets another.
local function gather_deadlines()
  local known = call('ZCARD', ROOT .. 'd')
  if known == call('HLEN', ROOT) - 2 then return end
  local flat, gathered = call('HGETALL', ROOT), {}
  for index = 1, #flat, 2 do
    local id, hold = flat[index], flat[index + 1]
    if id ~= '' and id ~= 'names' then
      local at, granted, rest, has_deadline
      if hold ~= RELEASED then at, granted, rest, has_deadline = parts_of(hold) end
      if has_deadline == false then
        call('HSET', ROOT, id, hold_of(at, granted, rest))
        call('ZADD', ROOT .. 'd', at + q[6], id)
      else
        gathered[#gathered + 1] = id
      end
    end
  end
  if #gathered == known then return end
  for index = 1, #gathered do call('ZADD', ROOT .. 'd', 'NX', now + q[6], gathered[index]) end
end

-- Does what is due: ends holds whose deadline is past, and puts off that the tenant is forgotten. How many holds were
-- of requests, and how many reservations.
local function tend()
  if now < tenant[DUE] then return 0, 0 end
  gather_deadlines()
  local due = call('ZRANGEBYSCORE', ROOT .. 'd', '-inf', now, 'LIMIT', 0, REAPED_AT_ONCE)
  local reaped, expired = 0, 0
  for index = 1, #due do
    local node = end_hold(due[index])
    if node then
      if node == '' then expired = expired + 1 else reaped = reaped + 1 end
    end
  end
  -- A node that was cut off, or may be, wrote to the store what it used, and nobody here was told.
  if #due > 0 then begin_anew() end
  local first = call('ZRANGE', ROOT .. 'd', 0, 0, 'WITHSCORES')
  tenant[DUE] = math.min(tonumber(first[2]) or MAX, now + FRESHENED)
  changed.t = true
  for _, name in ipairs({ '', 'd', 'e', 's' }) do call('PEXPIRE', ROOT .. name, IDLE_MS) end
  return reaped, expired
end

-- What a reader of sums has to know: incarnation, drain sequence, events that may be in the store (id, event), and the
-- ids of the others: a node that could not say so may have written those there too.
local function with_events(reply)
  local flat, draining, waiting = call('HGETALL', ROOT .. 'e'), {}, {}
  for index = 1, #flat, 2 do
    local id, kept = flat[index], flat[index + 1]
    if id ~= '' and string.sub(kept, 1, 1) == 'g' then
      draining[#draining + 1] = { id, cmsgpack.unpack(string.sub(kept, 2)) }
    elseif id ~= '' then
      waiting[#waiting + 1] = id
    end
  end
  reply.inc, reply.drains, reply.draining, reply.waiting = tenant[INC], tenant[DRAINS], draining, waiting
  return answer(reply)
end

-- An id that was made from a key (a version 5 UUID) may be recorded by two nodes: it is remembered for a while after
-- the first of them has done with it. Any other id is one node's own.
local REMEMBERED = 600 * SECOND

local function may_be_repeated(id)
  return string.sub(id, 17, 17) == '5'
end
