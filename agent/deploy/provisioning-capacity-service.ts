import { create } from '@bufbuild/protobuf'
import type { ServiceImpl } from '@connectrpc/connect'
import {
  CapacityResponseSchema,
  type ProvisioningCapacityService,
} from '../../proto/messages/apocryph/provisioning-capacity_pb.js'
import type { Capacity } from './capacity.ts'

/** Their prices are per core and second, ours per core and 10^9 seconds. */
const SECONDS = 1_000_000_000n

/** What existing clients call the resources that have a price. */
const OLD_NAMES: Readonly<Record<string, string>> = { memory: 'ram' }

/** The enquiry after capacity and prices, in the words of existing clients. Fractions of a base unit a second are rounded up. */
export function provisioningCapacityService(
  capacity: Capacity,
): ServiceImpl<typeof ProvisioningCapacityService> {
  return {
    getCapacity: async () => {
      const { operator, offers, cpuMillisFree, memoryBytesFree } = await capacity.ask()
      const [offer] = offers
      return create(CapacityResponseSchema, {
        providerAddress: operator,
        availableResources: [
          { resource: 'cpu', quantity: { case: 'amountMillis', value: cpuMillisFree } },
          { resource: 'memory', quantity: { case: 'amount', value: memoryBytesFree } },
        ],
        ...(offer !== undefined && {
          pricing: {
            paymentContractAddress: offer.contract,
            resources: offer.prices.map(({ resource, perUnitGigasecond }) => ({
              resource: OLD_NAMES[resource] ?? resource,
              priceForReservation: (BigInt(perUnitGigasecond) + SECONDS - 1n) / SECONDS,
            })),
          },
        }),
      })
    },
  }
}
