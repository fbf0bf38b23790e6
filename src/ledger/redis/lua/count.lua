-- Ends a hold, and counts durable events, each once however often it is told.
-- numbers: from the seventh on: 1 if the events are about to be written to the store; 1 if what is not counted yet
--          stays so, and is named; 1 if the hold is ended by hand, and its owner is to find out; how many events; of
--          each: admitted at, how many numbers follow, used [feature, quantity]
-- beside:  the hold's id, '' for none; ids of the events; the events as they are kept; the names of their keys'
--          subjects ('k:…' or ''); of their users' ('u:…')
-- Of one event or none, which stays in the journal, it answers numbers: 4; now; 0; 0; how many holds ended; how many
-- events were counted; how long the tenant's list and the key's are; the lists of tenant, key and user. Else names.

local HOLD, is_draining, only_here, by_hand, events = ARGV[4], q[7] == 1, q[8] == 1, q[9] == 1, q[10]
local EVENTS = ROOT .. 'e'
-- A new event is looked for by being written. That all events were lost is noticed when it is drained.
local is_new = events == 1 and not is_draining and not only_here

local raw, held, tenant, seen, count
for _ = 1, 3 do
  local found = call('HMGET', ROOT, '', HOLD)
  raw, held = found[1], HOLD ~= '' and found[2]
  count = raw and #raw / 8
  tenant = raw
    and (count <= SHORT and { struct.unpack(string.sub(DOUBLES, 1, count + 1), raw) } or read(raw, 1, count))
  if raw then tenant[count + 1] = nil end -- where it stopped reading
  seen = events > 0 and not is_new and call('HMGET', EVENTS, '', unpack(ARGV, 5, 4 + events))
  if raw and tenant[1] == q[1] and (not seen or seen[1] == string.sub(raw, 1, 16)) then break end

  -- What is rare: another epoch, or events that were lost.
  --- common ---
  open_tenant()
  check_events()
  save_subjects()
end

-- The lists that usage of a key and a user belongs to: mostly the tenant's alone.
local lists, lists_of, subjects = { tenant }, nil, nil
if tenant[SCOPES] ~= 0 then
  subjects = {}
  local function subject(name)
    if subjects[name] == nil then
      local packed = call('GET', ROOT .. name)
      local list = packed and read(packed, 1, #packed / 8)
      subjects[name] = list and list[INC] == tenant[INC] and list
    end
    return subjects[name]
  end
  lists_of = function(key, user)
    local scopes = tenant[SCOPES]
    return { tenant, scopes % 2 == 1 and key ~= '' and subject(key), scopes >= 2 and subject(user) }
  end
end

local ended, counted, is_changed = 0, 0, is_draining
if held then
  call('HDEL', ROOT, HOLD)
  local at, has_deadline, numbers = 0, 1, 0
  if held ~= 'x' then -- RELEASED
    at, has_deadline, numbers = struct.unpack('<ddd', held)
  end
  if has_deadline == 1 then call('ZREM', ROOT .. 'd', HOLD) end
  if held ~= 'x' then
    ended, is_changed = 1, true
    local granted, of = nil, lists
    if numbers <= SHORT then
      granted = { struct.unpack(string.sub(DOUBLES, 1, numbers + 1), held, 25) }
    else
      granted = read(held, 25, numbers)
    end
    if lists_of then
      local _, key, user = unpack(cmsgpack.unpack(string.sub(held, 25 + 8 * numbers)))
      of = lists_of(key, user)
    end
    for s = 1, 3 do
      local list = of[s]
      for c = FIRST, list and #list or 0, STRIDE do
        if list[c + 1] <= at and at < list[c + 2] then
          for g = 1, numbers, 2 do
            if granted[g] == list[c] then
              local reserved = list[c + 4] - granted[g + 1]
              list[c + 4] = reserved > 0 and reserved or 0
            end
          end
        end
      end
    end
    if by_hand then
      local deadline = now + 2 * q[6]
      call('HSET', ROOT, HOLD, 'x')
      call('ZADD', ROOT .. 'd', deadline, HOLD)
      if deadline < tenant[DUE] then tenant[DUE] = deadline end
    end
  end
end

local p, absent = 11, nil
for e = 1, events do
  local id, packed, at, numbers = ARGV[4 + e], ARGV[4 + events + e], q[p], q[p + 1]
  local known = seen and seen[e + 1]
  -- One that may be recorded by two nodes is remembered for a while; see forget.lua.
  local is_counted = known or string.byte(id, 17) == 53 and call('ZSCORE', ROOT .. 'f', id)
  if is_counted then
    if is_draining and known and string.byte(known) == 101 then -- 'e'
      -- From now on it may be in the store: whoever reads sums from there has to look.
      call('HSET', EVENTS, id, packed)
    end
  elseif only_here then
    absent = absent or {}
    absent[#absent + 1] = id
  elseif call('HSETNX', EVENTS, id, packed) == 1 then
    counted, is_changed = counted + 1, true
    local of = lists_of and lists_of(ARGV[4 + 2 * events + e], ARGV[4 + 3 * events + e]) or lists
    for s = 1, 3 do
      local list = of[s]
      for c = FIRST, list and #list or 0, STRIDE do
        if list[c + 1] <= at and at < list[c + 2] then
          for u = p + 2, p + 1 + numbers, 2 do
            if q[u] == list[c] then
              local settled = list[c + 3] + q[u + 1]
              if settled > MAX then settled = MAX elseif settled < -MAX then settled = -MAX end
              list[c + 3] = settled
            end
          end
        end
      end
    end
    -- No event that is known lies after this.
    if at > tenant[LATEST] then tenant[LATEST] = at end
  end
  p = p + 2 + numbers
end
if is_draining then tenant[DRAINS] = tenant[DRAINS] + 1 end
local raws
if is_changed then
  raw = count <= SHORT and struct.pack(string.sub(DOUBLES, 1, count + 1), unpack(tenant)) or written(tenant)
  call('HSET', ROOT, '', raw)
  if subjects then
    raws = {}
    for name, list in pairs(subjects) do
      if list then
        raws[name] = written(list)
        call('SET', ROOT .. name, raws[name], 'KEEPTTL')
      end
    end
  end
end
if is_draining or absent or events > 1 then
  return cmsgpack.pack({ status = 'counted', now = now, absent = absent or {}, ended = ended })
end
local key, user = raws and raws[ARGV[7]] or '', raws and raws[ARGV[8]] or ''
return struct.pack('<dddddddd', 4, now, 0, 0, ended, counted, #raw / 8, #key / 8) .. raw .. key .. user
