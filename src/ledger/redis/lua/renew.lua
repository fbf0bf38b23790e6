-- Puts off the deadlines of open holds; one that is not here (this server lost it) is held again.
-- beside: deadline (µs; -1: now + lease) and outlives (from now on they outlive the node that made them), as
--         MessagePack; id and hold, as it is kept, of each

local ask = cmsgpack.unpack(ARGV[4])
open_tenant()
tend()

local deadline = ask.deadline
if deadline < 0 then deadline = now + q[6] end
local released = {}
for index = 5, #ARGV, 2 do
  local id, hold = ARGV[index], ARGV[index + 1]
  local found = call('HGET', ROOT, id)
  if not found then
    open_hold(id, hold, deadline)
  elseif found == RELEASED then
    released[#released + 1] = id
  else
    local at, granted, rest, has_deadline = parts_of(found)
    if ask.outlives then
      local _
      _, _, rest = parts_of(hold)
    end
    if ask.outlives or not has_deadline then
      call('HSET', ROOT, id, hold_of(at, granted, rest))
    end
    set_deadline(id, deadline)
  end
end
save_subjects()
return answer({ status = 'done', released = released })
