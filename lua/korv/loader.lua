--- Finds endpoint scripts: the files that the paths of `korv serve` stand for.
-- @module korv.loader

local uv = require "luv"

local loader = {}

local function is_folder(path)
  local stat = uv.fs_stat(path)
  return stat and stat.type == "directory"
end

local ENTRIES = 64 -- read at once

-- The *.lua in a folder, in the order of their names; or nil, message, name. (luv's fs_scandir keeps something of each call for ever.)
local function scripts_in(folder)
  local names, open, message, name = {}, uv.fs_opendir(folder, nil, ENTRIES)
  if not open then return nil, message, name end
  local entries = uv.fs_readdir(open)
  while entries do
    for _, entry in ipairs(entries) do
      if entry.name:find "^[^.].*%.lua$" then names[#names + 1] = folder .. "/" .. entry.name end
    end
    entries = uv.fs_readdir(open)
  end
  uv.fs_closedir(open)
  if #names == 0 then return nil, folder .. ": no *.lua in this folder", "ENOENT" end
  table.sort(names)
  return names
end

--- The scripts that paths stand for.
-- @tparam {string,...} paths files, and folders, which stand for their *.lua
-- @treturn ?{string,...} and, by the same paths, true for those that were found in a folder
-- @treturn ?string message
-- @treturn ?string name
function loader.find(paths)
  local found = {}
  for _, path in ipairs(paths) do
    local list = { path }
    if is_folder(path) then
      local message, name
      list, message, name = scripts_in((path:gsub("(.)/+$", "%1")))
      if not list then return nil, message, name end
      for _, script in ipairs(list) do found[script] = true end
    end
    table.move(list, 1, #list, #found + 1, found)
  end
  return found
end

return loader
