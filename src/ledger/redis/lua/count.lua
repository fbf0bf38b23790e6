-- Ends a hold, and counts durable events, each once however often it is told.
-- numbers: from the seventh on: 1 if the events are about to be written to the store; 1 if what is not counted yet
--          stays so, and is named; 1 if the hold is ended by hand, and its owner is to find out; how many events; of
--          each: admitted at, how many numbers follow, used [feature, quantity]
-- beside:  the hold's id, '' for none; ids of the events; the events as they are kept; the names of their keys'
--          subjects ('k:…' or ''); of their users' ('u:…')
-- Of one event or none, which stays in the journal, it answers numbers: 4; now; 0; 0; how many holds ended; how many
-- events were counted; how long the tenant's list and the key's are; the lists of tenant, key and user. Else names.

local HOLD, is_draining, only_here, by_hand, count = ARGV[4], q[7] == 1, q[8] == 1, q[9] == 1, q[10]
local EVENTS = ROOT .. 'e'

local raw, held = unpack(call('HMGET', ROOT, '', HOLD))
local tenant = raw and read(raw, 1, #raw / 8)
local seen = count > 0 and call('HMGET', EVENTS, '', unpack(ARGV, 5, 4 + count))

-- What is rare: another epoch, or events that were lost.
local function open()
  --- common ---
  open_tenant()
  check_events()
  save_subjects()
end
if not tenant or tenant[1] ~= q[1] or seen and seen[1] ~= string.sub(raw, 1, 16) then
  open()
  raw, held = unpack(call('HMGET', ROOT, '', HOLD))
  tenant = read(raw, 1, #raw / 8)
  seen = count > 0 and call('HMGET', EVENTS, '', unpack(ARGV, 5, 4 + count))
end

local subjects, raws, is_changed = {}, {}, false

-- The list of a key or user, if it has counters.
local function subject(name)
  local found = subjects[name]
  if found == nil then
    local packed = call('GET', ROOT .. name)
    found = packed and read(packed, 1, #packed / 8)
    if not found or found[INC] ~= tenant[INC] then found = false end
    subjects[name] = found
  end
  return found
end

-- Adds to every counter that usage of key and user, admitted at `at`, belongs to: to what is settled, or, with a
-- negative sign, takes from what is reserved.
local function add(key, user, at, quantities, first, last, sign)
  local scopes = tenant[SCOPES]
  for s = 1, scopes == 0 and 1 or 3 do
    local list = tenant
    if s == 2 then
      list = scopes % 2 == 1 and key ~= '' and subject(key)
    elseif s == 3 then
      list = scopes >= 2 and subject(user)
    end
    for c = FIRST, list and #list or 0, STRIDE do
      if list[c + 1] <= at and at < list[c + 2] then
        for index = first, last, 2 do
          if quantities[index] == list[c] then
            if sign > 0 then
              local settled = list[c + 3] + quantities[index + 1]
              if settled > MAX then settled = MAX elseif settled < -MAX then settled = -MAX end
              list[c + 3] = settled
            else
              local reserved = list[c + 4] - quantities[index + 1]
              list[c + 4] = reserved > 0 and reserved or 0
            end
          end
        end
      end
    end
  end
  is_changed = true
end

local ended, counted = 0, 0
if held and HOLD ~= '' then
  call('HDEL', ROOT, HOLD)
  call('ZREM', ROOT .. 'd', HOLD)
  if held ~= 'x' then -- RELEASED
    ended = 1
    local at, numbers = struct.unpack('<d<d', held)
    local key, user = '', ''
    if tenant[SCOPES] ~= 0 then
      local _
      _, key, user = unpack(cmsgpack.unpack(string.sub(held, 17 + 8 * numbers)))
    end
    add(key, user, at, read(held, 17, numbers), 1, numbers, -1)
    if by_hand then
      local deadline = now + 2 * q[6]
      call('HSET', ROOT, HOLD, 'x')
      call('ZADD', ROOT .. 'd', deadline, HOLD)
      if deadline < tenant[DUE] then tenant[DUE] = deadline end
    end
  end
end

local p, absent, twice = 11, nil, nil
for e = 1, count do
  local id, packed, at, numbers = ARGV[4 + e], ARGV[4 + count + e], q[p], q[p + 1]
  local known = seen[e + 1]
  if twice and not known then known = twice[id] end
  -- One that may be recorded by two nodes is remembered for a while; see forget.lua.
  local is_counted = known or string.byte(id, 17) == 53 and call('ZSCORE', ROOT .. 'f', id)
  if not is_counted then
    if only_here then
      absent = absent or {}
      absent[#absent + 1] = id
    else
      counted = counted + 1
      add(ARGV[4 + 2 * count + e], ARGV[4 + 3 * count + e], at, q, p + 2, p + 1 + numbers, 1)
      -- No event that is known lies after this.
      if at > tenant[LATEST] then tenant[LATEST] = at end
      call('HSET', EVENTS, id, packed)
      if count > 1 then
        twice = twice or {}
        twice[id] = packed
      end
    end
  elseif is_draining and known and string.byte(known) == 101 then -- 'e'
    -- From now on it may be in the store: whoever reads sums from there has to look.
    call('HSET', EVENTS, id, packed)
  end
  p = p + 2 + numbers
end
if is_draining then
  tenant[DRAINS] = tenant[DRAINS] + 1
  is_changed = true
end
if is_changed then
  raw = written(tenant)
  call('HSET', ROOT, '', raw)
  for name, list in pairs(subjects) do
    if list then
      raws[name] = written(list)
      call('SET', ROOT .. name, raws[name], 'KEEPTTL')
    end
  end
end
if is_draining or absent or count > 1 then
  return cmsgpack.pack({ status = 'counted', now = now, absent = absent or {}, ended = ended })
end
local key, user = raws[ARGV[7]] or '', raws[ARGV[8]] or ''
return struct.pack('<d<d<d<d<d<d<d<d', 4, now, 0, 0, ended, counted, #raw / 8, #key / 8) .. raw .. key .. user
